"""What a report is written from: plain rows of numbers and strings, whoever measured them."""

# Annotations are not put off here: as strings, a NotRequired in them would not be seen, and every key be required.
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from rlhf_pg.errors import DataError

Settings = Mapping[str, Any]  # dotted keys to numbers or strings


class Point(TypedDict):
    """A run's checkpoint, or anyone's policy, as it was evaluated. Errors are standard errors; None: not measured."""

    run: str
    kl: float  # nats a response: sequence KL to the reference
    reward: float | None
    kl_stderr: NotRequired[float | None]
    kl_k1: NotRequired[float | None]  # nats: the estimate from the sampled tokens alone
    kl_k1_stderr: NotRequired[float | None]
    kl_token: NotRequired[float | None]  # nats a token: the sequence KL's sum over the number of tokens
    reward_stderr: NotRequired[float | None]
    gold: NotRequired[float | None]
    gold_stderr: NotRequired[float | None]
    seed: NotRequired[int | None]
    step: NotRequired[int | None]
    settings: NotRequired[Settings]  # what was varied, such as {"kl.coef": 0.05, "recipe": "rloo"}
    length: NotRequired[float | None]  # tokens
    repetition: NotRequired[float | None]
    distinct: NotRequired[float | None]
    disagreement: NotRequired[float | None]
    win_rate: NotRequired[float | None]
    efficiency: NotRequired[float | None]
    efficiency_low: NotRequired[float | None]
    efficiency_high: NotRequired[float | None]
    efficiency_reason: NotRequired[str]  # why there is none
    command: NotRequired[str]  # reproduces the run
    config: NotRequired[Settings]  # shown where the point is


class BestOfN(TypedDict):
    """The best of n completions of the reference, at the KL that it has at most."""

    n: int
    kl_bound: float  # log n − (n−1)/n, nats
    reward: float
    reward_stderr: NotRequired[float | None]
    gold: NotRequired[float | None]
    gold_stderr: NotRequired[float | None]
    win_rate: NotRequired[float | None]


class Optimum(TypedDict):
    """The best reward that any policy has at a KL."""

    beta: float
    kl: float
    reward: float
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    ess: NotRequired[float | None]  # effective sample size
    drawn: NotRequired[bool]
    reason: NotRequired[str]  # why it is not drawn


class OtherPoint(TypedDict):
    """A point of a further series."""

    kl: float
    reward: float
    label: NotRequired[str]


class Other(TypedDict):
    """A further series on the same plot, such as another library's runs."""

    name: str
    points: Sequence[OtherPoint]


class Parameter(TypedDict):
    """A fitted parameter and its interval."""

    name: str
    value: float
    low: NotRequired[float | None]
    high: NotRequired[float | None]


class CurvePoint(TypedDict):
    """A point of a fitted curve."""

    kl: float
    value: float


class Fit(TypedDict):
    """A fit of reward or gold against KL."""

    name: str
    formula: str
    parameters: Sequence[Parameter]
    curve: Sequence[CurvePoint]
    measure: NotRequired[str]  # "gold" (the default) or "reward"
    peak_kl: NotRequired[float | None]
    peak_low: NotRequired[float | None]
    peak_high: NotRequired[float | None]


class Closest(TypedDict):
    """The run nearest to a KL that was asked for."""

    target_kl: float
    run: str
    kl: float
    reward: NotRequired[float | None]
    step: NotRequired[int | None]
    command: NotRequired[str]


class Token(TypedDict):
    """A sampled token."""

    text: str
    kl: NotRequired[float | None]  # nats: its contribution to the sequence KL
    advantage: NotRequired[float | None]


class Completion(TypedDict):
    """A completion as text, or by token, and how it was judged."""

    text: NotRequired[str]
    tokens: NotRequired[Sequence[Token]]
    components: NotRequired[Mapping[str, float | None]]  # each reward function's value
    reward: NotRequired[float | None]
    kl: NotRequired[float | None]  # nats; left out, the sum over the tokens
    finish_reason: NotRequired[str]


class Sample(TypedDict):
    """A prompt with the policy's completion and, where there is one, the reference's."""

    prompt: str
    policy: Completion
    reference: NotRequired[Completion | None]


class SampleSet(TypedDict):
    """The samples of a run (or of a kind of prompts) at a step."""

    name: str
    samples: Sequence[Sample]
    step: NotRequired[int | None]


@dataclass(frozen=True, slots=True)
class FrontierReport:
    """What ``write_report`` needs of a frontier. Any part may be empty: the page then says what is absent and why.

    Attributes:
        title, headline: a name and one sentence with the main result.
        about: recipe, rewards, machine, versions, date, command: label to text, in the order shown.
        points: runs by evaluated checkpoint, in the order of their steps.
        verdict: what the fits say in words; audit: what can be said without a gold reward.
        pareto: names of the runs that no other beats in both KL and reward.
        absent: reasons for absent parts, by the part's name here, in place of the page's own words.

    Raises:
        DataError: a row lacks a key, has one that is unknown, or a number that must be finite and is not.
    """

    title: str
    headline: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()
    best_of_n: Sequence[BestOfN] = ()
    optimum: Sequence[Optimum] = ()
    others: Sequence[Other] = ()
    fits: Sequence[Fit] = ()
    verdict: str = ""
    audit: str = ""
    pareto: Sequence[str] = ()
    hypervolume: float | None = None  # reward units · nats
    closest: Closest | None = None
    samples: Sequence[SampleSet] = ()
    reward_name: str = "reward"
    gold_name: str = "gold reward"
    absent: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("points", self.points, Point)
        _check("best_of_n", self.best_of_n, BestOfN)
        _check("optimum", self.optimum, Optimum)
        _check("others", self.others, Other)
        _check("others.points", [point for other in self.others for point in other["points"]], OtherPoint)
        _check("fits", self.fits, Fit)
        _check("closest", [self.closest] if self.closest else [], Closest)
        check_samples(self.samples)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What ``write_report`` needs of one run.

    Attributes:
        title, headline, about: as in a ``FrontierReport``.
        metrics: lines of ``metrics.jsonl``, as ``tracking.read_metrics`` gives them.
        alerts: what the run was warned of.
        config: the run's configuration by dotted key.
        samples: by kind of prompts and step; samples_note: which they are, or why there are none.

    Raises:
        DataError: a sample lacks a key or has one that is unknown.
    """

    title: str
    headline: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    alerts: Sequence[str] = ()
    config: Settings = field(default_factory=dict)
    samples: Sequence[SampleSet] = ()
    samples_note: str = ""

    def __post_init__(self) -> None:
        check_samples(self.samples)


def check_samples(sets: Sequence[SampleSet]) -> None:
    """Raise ``DataError`` unless each set, sample, completion and token has the keys that it must and no other."""
    _check("samples", sets, SampleSet)
    for found in sets:
        _check("samples", found["samples"], Sample)
        sides = [side for sample in found["samples"] for side in (sample["policy"], sample.get("reference")) if side]
        _check("completions", sides, Completion)
        for side in sides:
            _check("tokens", side.get("tokens", ()), Token)


def _check(part: str, rows: Sequence[Any], kind: Any) -> None:
    required: frozenset[str] = kind.__required_keys__
    known = required | kind.__optional_keys__
    for number, row in enumerate(rows):
        missing, odd = sorted(required - row.keys()), sorted(row.keys() - known)
        if missing or odd:
            what = f"lacks {', '.join(missing)}" if missing else f"has the unknown key {odd[0]!r}"
            raise DataError(f"{part}, row {number}: {what}; a row has {', '.join(sorted(known))}")
        for name in required:
            if isinstance(row[name], float) and not math.isfinite(row[name]):
                raise DataError(f"{part}, row {number}: {name} is {row[name]}; it must be finite, so leave the row out")
