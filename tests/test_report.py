"""The reports: what they refuse, what they say of absent parts, and how they behave in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlhf_pg.config.load import load_config, to_yaml
from rlhf_pg.errors import DataError
from rlhf_pg.report import FrontierReport, RunReport, report_run, write_report
from rlhf_pg.report.data import Point, Sample
from rlhf_pg.report.html import levels
from rlhf_pg.report.page import number, plain, visible
from rlhf_pg.report.run import read_run
from rlhf_pg.report.tokens import token_texts
from rlhf_pg.tracking.records import metrics_line, write_table

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\"><!-- {{ 7*7 }} {% raw %} __proto__ "
    "\x1b[31mred\x1b[0m \u202eback\u202c &lt;b&gt; \u2028 <script>document.title='owned'</script>\nlast \ud800 line"
)
EXPECTED = visible(HOSTILE)


def point(recipe: str, coef: float, seed: int, step: int, end: float) -> Point:
    """A checkpoint of a made-up run that goes to ``end`` nats in 120 steps."""
    kl = end * (step / 120) ** 1.5
    worth = {"rloo": 0.30, "ppo": 0.33}[recipe] + 0.01 * seed
    reward = 0.32 + worth * math.sqrt(kl)
    return {
        "run": f"{recipe}-kl{coef:g}-s{seed}",
        "seed": seed,
        "step": step,
        "settings": {"recipe": recipe, "kl.coef": coef},
        "kl": kl,
        "kl_stderr": 0.03 * kl,
        "kl_k1": kl * 1.02,
        "reward": reward,
        "reward_stderr": 0.015,
        "gold": 0.32 + math.sqrt(kl) * (0.35 - 0.13 * math.sqrt(kl)),
        "gold_stderr": 0.02,
        "length": 48 - 4 * kl,
        "repetition": 0.02 * kl,
        "distinct": 0.9 - 0.1 * kl,
        "disagreement": 0.05 + 0.02 * kl,
        "win_rate": 0.5 + 0.1 * kl,
        "efficiency": 0.8,
        "efficiency_low": 0.75,
        "efficiency_high": 0.86,
        "command": f"rlhf-pg train {recipe} kl.coef={coef:g} run.seed={seed}",
        "config": {"kl.coef": coef, "run.seed": seed, **{f"update.key{n}": n for n in range(9)}},
    }


def sample(text: str = "and was happy.") -> Sample:
    words = re.findall(r"\s*\S+", text)
    return {
        "prompt": "Once upon a time there was a dog. " + text[:10],
        "reference": {"text": "who sat down.", "reward": 0.1, "finish_reason": "eos"},
        "policy": {
            "tokens": [
                {"text": word, "kl": 0.01 * 2**n, "advantage": 0.3 * (-1) ** n} for n, word in enumerate(words[:9])
            ],
            "components": {"vader": 0.7, "__proto__": 0.2},
            "reward": 0.9,
            "finish_reason": "length",
        },
    }


def frontier(gold: bool = True) -> FrontierReport:
    """A whole frontier of made-up numbers."""
    ends = {0.2: 0.9, 0.1: 1.9, 0.05: 3.1, 0.02: 4.6}
    points = [
        point(recipe, coef, seed, step, end * (1.1 if recipe == "ppo" else 1.0))
        for recipe in ("rloo", "ppo")
        for coef, end in ends.items()
        for seed in (0, 1)
        for step in (30, 60, 90, 120)
    ]
    ceiling = [(1.0, 0.47, 0.664), (0.5, 0.99, 0.775), (0.3, 1.76, 0.855), (0.2, 2.18, 0.879), (0.1, 2.92, 0.908)]
    whole = FrontierReport(
        title="Reward against KL: stories, VADER",
        headline="The best run buys 0.88 [0.84, 0.92] of the reward that is possible at its KL of 3.1 nats.",
        about={"recipe": "rloo, ppo", "command": "rlhf-pg frontier rloo --vary kl.coef=0.2,0.1,0.05,0.02 --seeds 2"},
        points=points,
        best_of_n=[
            {
                "n": n,
                "kl_bound": math.log(n) - (n - 1) / n,
                "reward": 0.32 + 0.58 * (1 - n**-0.5),
                "reward_stderr": 0.01,
                "win_rate": n / (n + 1),
            }
            for n in (1, 2, 4, 8, 16, 32)
        ],
        optimum=[
            {"beta": beta, "kl": kl, "reward": reward, "low": reward - 0.01, "high": reward + 0.02, "ess": 500 * beta}
            for beta, kl, reward in ceiling
        ]
        + [{"beta": 0.05, "kl": 3.9, "reward": 0.93, "ess": 8.0, "drawn": False, "reason": "8 effective samples"}],
        others=[{"name": "TRL RLOO", "points": [{"kl": 0.94, "reward": 0.589}, {"kl": 1.93, "reward": 0.719}]}],
        fits=[
            {
                "name": "gold, RL",
                "formula": "R(d) = d(α − β log d)",
                "parameters": [{"name": "α", "value": 0.35, "low": 0.3, "high": 0.4}, {"name": "β", "value": 0.13}],
                "curve": [
                    {"kl": kl / 10, "value": 0.32 + math.sqrt(kl / 10) * (0.35 - 0.13 * math.sqrt(kl / 10))}
                    for kl in range(51)
                ],
                "peak_kl": 1.81,
                "peak_low": 1.4,
                "peak_high": 2.3,
            }
        ],
        verdict="Gold peaks at 1.8 nats [1.4, 2.3] and falls from there, while the proxy rises on.",
        pareto=["rloo-kl0.2-s1", "ppo-kl0.05-s1"],
        hypervolume=1.234,
        closest={"target_kl": 3, "run": "rloo-kl0.05-s0", "kl": 3.1, "reward": 0.85, "command": "rlhf-pg train rloo"},
        samples=[
            {"name": points[-1]["run"], "step": 120, "samples": [sample(HOSTILE), sample()]},
            {"name": points[3]["run"], "step": 120, "samples": [sample("a second run")]},
        ],
        reward_name="VADER",
        gold_name="length-free gold",
    )
    if gold:
        return whole
    kept = [{name: value for name, value in one.items() if not name.startswith("gold")} for one in points]
    return replace(whole, points=kept, fits=(), verdict="", audit="Length falls by 4 tokens a nat.")  # type: ignore[arg-type]


class Page(HTMLParser):
    """A page's elements, and the text of those that are asked about."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[int, str] = {}
        self.words = ""
        self.open = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        place = len(self.tags) - 1
        if self.open:
            self.texts[place] = self.texts.get(place, "") + data
        self.words += data

    def inside(self, tag: str, **attributes: str) -> list[str]:
        return [
            self.texts.get(place, "")
            for place, (name, found) in enumerate(self.tags)
            if name == tag and attributes.items() <= found.items()
        ]

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.inside("script", id="data")[0])
        return found


# Rows


@pytest.mark.parametrize(
    ("part", "row", "message"),
    [
        ("points", {"run": "a", "kl": 1.0}, "points, row 0: lacks reward"),
        ("points", {"run": "a", "kl": 1.0, "reward": 1.0, "rewrad": 2.0}, "unknown key 'rewrad'"),
        ("points", {"run": "a", "kl": math.nan, "reward": 1.0}, "points, row 0: kl is nan; it must be finite"),
        ("optimum", {"kl": 1.0, "reward": 1.0}, "optimum, row 0: lacks beta"),
        ("others", {"name": "x", "points": [{"kl": 1.0}]}, r"others.points, row 0: lacks reward"),
        ("samples", {"name": "x", "samples": [{"prompt": "p"}]}, "samples, row 0: lacks policy"),
        ("samples", {"name": "x", "samples": [{"prompt": "p", "policy": {"tokens": [{"kl": 1}]}}]}, "tokens, row 0"),
    ],
)
def test_rows_are_checked(part: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FrontierReport("t", **{part: [row]})


def test_the_least_that_a_policy_needs_is_a_name_a_kl_and_a_reward(tmp_path: Path) -> None:
    page = Page(write_report(FrontierReport("t", points=[{"run": "a", "kl": 1, "reward": 2}]), tmp_path / "r.html"))
    (figure,) = page.data["figures"]
    assert figure["views"][0]["lines"][0]["dots"] == [{"x": 1, "y": 2, "label": "a", "tip": 0}]
    assert page.inside("th") == [""] * 3, "run, KL, reward: no column for what was not measured"


def test_plain_values() -> None:
    assert plain({"__proto__": math.nan, "a": [0.1 + 0.2, True, 3]}) == [["__proto__", None], ["a", [0.3, True, 3]]]


def test_a_number_that_is_none_is_drawn_nowhere(tmp_path: Path) -> None:
    metrics = [{"step": step, "reward": value} for step, value in enumerate((0.1, math.nan, None, 0.3))]
    page = Page(write_report(RunReport("r", metrics=metrics), tmp_path / "r.html"))
    assert page.data["figures"][0]["views"][0]["lines"][0]["dots"] == [{"x": 0, "y": 0.1}, {"x": 3, "y": 0.3}]
    point: Point = {"run": "a", "kl": 1.0, "reward": None, "length": math.nan}
    page = Page(write_report(FrontierReport("t", points=[point]), tmp_path / "r.html"))
    assert page.data["figures"] == []
    assert page.inside("td", **{"class": "n"}) == ["1.000"]


def test_visible_text_keeps_line_breaks_alone() -> None:
    assert visible("a\x1b[1m\n\u202eb\tc\u2028\ud800") == "a\\x1b[1m\n\\u202eb\\tc\\u2028\\ud800"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (0.0, "0.000"), (0.0004, "0.0004"), (1234.5, "1234"), (-0.5, "-0.500")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.013], [0.001, 0.002, 0.004, 0.01, 0.02]),
        ([-3.0], [0.25, 0.5, 1.0, 2.5, 5.0]),
        ([0.5] * 200 + [70.0], [0.025, 0.05, 0.1, 0.25, 0.5]),
        ([12.0], [1.0, 2.0, 4.0, 10.0, 20.0]),
        ([0.0, None], []),
        ([], []),
    ],
)
def test_shades_have_round_thresholds(values: list[float | None], expected: list[float]) -> None:
    tokens: Any = [{"text": "a", "kl": value} for value in values]
    assert levels([{"name": "s", "samples": [{"prompt": "", "policy": {"tokens": tokens}}]}], "kl") == expected


def test_tokens_add_up_to_the_text_and_split_no_character() -> None:
    whole = "né 漢字"
    ids = list(whole.encode())
    texts = token_texts(lambda part: bytes(part).decode(errors="replace"), ids)
    assert "".join(texts) == whole
    assert len(texts) == len(ids)
    assert texts[:4] == ["n", "", "é", " "]


def test_a_tokenizer_that_strips_a_leading_space_keeps_those_within() -> None:
    words = [" one", " two", " three"]
    assert token_texts(lambda part: "".join(words[i] for i in part).removeprefix(" "), [0, 1, 2]) == [
        "one",
        " two",
        " three",
    ]


def test_a_response_cut_within_a_character() -> None:
    assert token_texts(lambda part: bytes(part).decode(errors="replace"), list("é".encode())[:1]) == ["\ufffd"]


# The file


def test_the_policy_allows_the_script_and_the_style_of_the_page_alone(tmp_path: Path) -> None:
    page = Page(write_report(frontier(), tmp_path / "r.html"))
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for rule, tag in (("script-src", "script"), ("style-src", "style")):
        (text,) = [text for text in page.inside(tag) if not text.startswith('{"')]
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert "unsafe" not in policy


def test_nothing_in_the_file_loads_or_runs_anything(tmp_path: Path) -> None:
    hostile = replace(frontier(), title=HOSTILE, headline=HOSTILE, verdict=HOSTILE, about={HOSTILE: HOSTILE})
    page = Page(write_report(hostile, tmp_path / "r.html"))
    names = [name for _, attributes in page.tags for name in attributes]
    assert not [name for name in names if name.startswith("on") or name in ("src", "href", "style", "action")]
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert not {"img", "iframe", "link", "object", "embed", "base"} & set(tags)
    assert page.inside("h1") == [EXPECTED]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]", page.source)
    assert page.data["samples"][0]["samples"][0]["prompt"] == "Once upon a time there was a dog. " + HOSTILE[:10]


def test_absent_parts_are_said_to_be_absent_and_why(tmp_path: Path) -> None:
    report = FrontierReport("Empty", absent={"optimum": "The optimum was switched off."})
    page = Page(write_report(report, tmp_path / "r.html"))
    said = "\n".join(page.inside("p", **{"class": "absent"}))
    for words in (
        "There are no runs yet",
        "The optimum was switched off",
        "Best of n is absent",
        "No samples were kept",
    ):
        assert words in said
    assert "No gold reward was given" in page.words
    assert page.data["figures"] == []


def test_without_gold_it_is_an_audit(tmp_path: Path) -> None:
    page = Page(write_report(frontier(gold=False), tmp_path / "r.html"))
    assert "Audit. Length falls by 4 tokens a nat." in page.words
    assert "warning" not in page.words.lower()
    assert [figure["id"] for figure in page.data["figures"]] == [
        "frontier",
        *(f"audit-{name}" for name in ("length", "repetition", "distinct", "disagreement")),
    ]


def test_a_point_of_the_optimum_that_is_not_drawn_says_why(tmp_path: Path) -> None:
    page = Page(write_report(frontier(), tmp_path / "r.html"))
    lines = {line["name"]: line for line in page.data["figures"][0]["views"][0]["lines"]}
    assert [dot["x"] for dot in lines["optimum"]["dots"]] == [0.47, 0.99, 1.76, 2.18, 2.92]
    assert "Not drawn: the optimum at β = 0.05 (3.90 nats): 8 effective samples." in page.words


# A run's folder


def run_folder(tmp_path: Path, model: str = "nowhere", steps: int = 3, ids: list[int] | None = None) -> Path:
    """A folder such as a run leaves, of one reward and two rows a step."""
    run = tmp_path / "run"
    for name in ("rollouts", "evaluations"):
        (run / name).mkdir(parents=True)
    (run / "config.yaml").write_text(
        to_yaml(
            load_config(
                "rloo", [f"policy.model={model}", "data.source=p.jsonl", "reward.functions=[vader]", "run.name=x"]
            )
        )
    )
    lines = [metrics_line(0, {"eval/reward": 0.1, "eval/kl/sequence": 0.0})]
    for step in range(1, steps + 1):
        lines.append(
            metrics_line(
                step,
                {
                    "reward": step / 10,
                    "kl/sequence": step,
                    "step_time": 2.0,
                    "time/rollout": 1.5,
                    "time/learn": 0.5,
                    "time/rewards/vader": 0.1,
                    "completions/clipped_ratio": 1.0,
                },
            )
        )
    lines.append(metrics_line(steps + 1, {"eval/reward": 0.4, "eval/reward_stderr": 0.02, "eval/kl/sequence": 1.5}))
    (run / "metrics.jsonl").write_text("".join(lines))
    ids = ids or [5, 6]
    same = {
        "prompt_index": [3, 3],
        "prompt": [HOSTILE[:-11]] * 2,
        "response_ids": [ids, ids],
        "finish_reason": ["eos", "length"],
    }
    for step, kl in ((0, 0.0), (steps, 0.25)):
        token_kl = [[kl / len(ids)] * len(ids)] * 2
        write_table(
            run / "evaluations",
            step,
            {
                **same,
                "completion": [f"held {step}", "second"],
                "token_kl": token_kl,
                "reward": [0.3, 0.2],
                "rewards/vader": [0.3, 0.2],
                "kl": [kl, kl],
            },
        )
    for step in range(1, steps + 1):
        write_table(
            run / "rollouts",
            step,
            {
                **same,
                "completion": ["train", "other"],
                "score": [0.5, math.nan],
                "rewards/vader": [0.5, None],
                "advantages": [[0.1] * len(ids)] * 2,
            },
        )
    return run


def test_a_run_s_report_holds_its_curves_and_samples(tmp_path: Path) -> None:
    path = report_run(run_folder(tmp_path))
    assert path == tmp_path / "run" / "report.html"
    page = Page(path)
    assert page.inside("h1") == ["Run x"]
    assert page.inside("p", **{"class": "headline"}) == [
        "Held-out reward 0.400 ± 0.020 at step 4, from 0.100 at step 0, at a KL of 1.500 nats."
    ]
    figures = {figure["id"]: figure for figure in page.data["figures"]}
    assert list(figures) == ["tradeoff", "reward", "kl", "time"]
    assert "Clip fraction: tokens outside the clipping range: this run's loss does not clip." in page.words
    train, held = figures["reward"]["views"][0]["lines"]
    assert [(dot["x"], dot["y"]) for dot in train["dots"]] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert held["dots"] == [{"x": 0, "y": 0.1}, {"x": 4, "y": 0.4, "low": 0.38, "high": 0.42}]
    rollout, learn = figures["time"]["views"][0]["lines"]
    assert (rollout["name"], learn["name"]) == ("rollout", "learn"), "a reward's time is within its phase's"
    assert learn["dots"][0] == {"x": 1, "low": 1.5, "high": 2.0}
    sets = {(found["name"], found["step"]): found["samples"] for found in page.data["samples"]}
    assert set(sets) == {
        ("held-out prompts", 0),
        ("held-out prompts", 3),
        *(("training prompts", n) for n in (1, 2, 3)),
    }
    (sample,) = sets["held-out prompts", 3]
    assert (sample["policy"]["text"], sample["reference"]["text"]) == ("held 3", "held 0")
    assert (sample["policy"]["kl"], sample["policy"]["reward"]) == (0.25, 0.3)
    assert [one["policy"]["reward"] for one in sets["training prompts", 1]] == [0.5, None]
    assert "has not saved its tokenizer yet" in page.words


def test_a_run_s_samples_by_token(tmp_path: Path, stories: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories)
    ids = tokenizer("Lily was happy. The dog was sad.", add_special_tokens=False)["input_ids"]
    samples = read_run(run_folder(tmp_path, stories, ids=ids)).samples
    tokens = samples[1]["samples"][0]["policy"]["tokens"]
    assert len(tokens) == len(ids)
    assert "".join(token["text"] for token in tokens) == tokenizer.decode(ids)
    assert sum(token["kl"] or 0 for token in tokens) == pytest.approx(0.25)
    assert [token["advantage"] for token in samples[-1]["samples"][0]["policy"]["tokens"]] == [0.1] * len(ids)


def test_alerts_of_the_run_are_told(tmp_path: Path) -> None:
    report = read_run(run_folder(tmp_path, steps=6))
    assert len(report.alerts) == 1
    assert report.alerts[0].startswith("Step 5: every response was cut off")


def test_a_long_run_is_drawn_as_means_of_blocks(tmp_path: Path) -> None:
    metrics = [{"step": step, "reward": float(step)} for step in range(1, 2001)]
    page = Page(write_report(RunReport("r", metrics=metrics), tmp_path / "r.html"))
    (figure,) = page.data["figures"]
    dots = figure["views"][0]["lines"][0]["dots"]
    assert len(dots) == 667
    assert dots[0] == {"x": 2, "y": 2}
    assert "means of 3 steps" in page.words


def test_a_run_shows_at_most_twelve_steps_with_the_first_and_the_last(tmp_path: Path) -> None:
    steps = [found["step"] for found in read_run(run_folder(tmp_path, steps=30)).samples if "training" in found["name"]]
    assert len(steps) == 12
    assert (steps[0], steps[-1]) == (1, 30)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it has no config\.yaml"):
        report_run(tmp_path)
    run = run_folder(tmp_path)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="wait for the run's first step"):
        report_run(run)


# A real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that keeps what its pages say on the console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # A container's root cannot have Chromium's sandbox, and the pages are our own.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pages for all that look at them."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        "frontier": write_report(frontier(), folder / "frontier.html"),
        "audit": write_report(frontier(gold=False), folder / "audit.html"),
        "empty": write_report(FrontierReport("Empty"), folder / "empty.html"),
        "run": report_run(run_folder(folder)),
        "hostile": write_report(hostile_report(), folder / "hostile.html"),
    }


def hostile_report() -> FrontierReport:
    """A frontier in which every string is hostile."""
    one: Point = {
        "run": HOSTILE,
        "kl": 1.0,
        "reward": 0.5,
        "settings": {HOSTILE: HOSTILE, "__proto__": 1},
        "command": HOSTILE,
        "config": {"__proto__": HOSTILE},
        "step": 1,
    }
    text: Sample = {
        "prompt": HOSTILE,
        "reference": {"text": HOSTILE, "finish_reason": HOSTILE},
        "policy": {"tokens": [{"text": HOSTILE, "kl": 1.0}], "components": {HOSTILE: 1.0, "__proto__": 2.0}},
    }
    return FrontierReport(
        HOSTILE,
        headline=HOSTILE,
        about={HOSTILE: HOSTILE},
        points=[one, {**one, "run": "__proto__", "kl": 2.0}],
        others=[{"name": HOSTILE, "points": [{"kl": 1.5, "reward": 0.4, "label": HOSTILE}]}],
        samples=[{"name": HOSTILE, "step": 1, "samples": [text]}, {"name": "__proto__", "samples": [text]}],
        reward_name=HOSTILE,
        verdict=HOSTILE,
        pareto=[HOSTILE],
    )


def open_page(browser: Any, path: Path, width: int = 1200, height: int = 900, media: str = "screen") -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    browser.get(path.as_uri())
    wait(browser, "return [...document.querySelectorAll('.plot > svg')].every(svg => svg.childNodes.length)")
    assert browser.get_log("browser") == [], "neither errors nor violations of the policy"


def wait(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 5, poll_frequency=0.02).until(lambda driver: driver.execute_script(script))


def css(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


def column(browser: Any, table: str, index: int) -> list[str]:
    """The texts of a column's cells that are shown."""
    script = """return [...document.querySelectorAll(arguments[0] + ' tbody tr')].filter(row => row.offsetParent)
        .map(row => row.cells[arguments[1]].textContent)"""
    found: list[str] = browser.execute_script(script, f"#table-{table}", index)
    return found


def click_on(browser: Any, selector: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
    css(browser, selector)[0].click()


def hover(browser: Any, selector: str, index: int = 0) -> None:
    from selenium.webdriver import ActionChains

    one = css(browser, selector)[index]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", one)
    ActionChains(browser).move_to_element(one).perform()


def change(browser: Any, selector: str, value: int, index: int = 0) -> None:
    """Choose an option, as a user does."""
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))",
        css(browser, selector)[index],
        value,
    )


def click(browser: Any) -> None:
    """Where the pointer is."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).click().perform()


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


@pytest.mark.parametrize("name", ["frontier", "audit", "empty", "run", "hostile"])
def test_a_page_draws_without_a_word_on_the_console_and_loads_nothing(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    open_page(browser, pages[name])
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.plot > svg')].map(svg => svg.querySelectorAll('.series').length)"
    )
    assert all(drawn)
    assert len(drawn) == {"frontier": 6, "audit": 5, "empty": 0, "run": 4, "hostile": 1}[name]


def test_the_policy_stops_a_script_that_is_put_into_the_page(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["frontier"])
    browser.execute_script(
        "const one = document.createElement('button'); document.body.append(one);"
        "try { one.setAttribute('onclick', 'document.title = 1'); one.click(); } catch (error) {}"
        "try { document.body.innerHTML = '<b>'; } catch (error) { window.refused = error.name; }"
        "fetch('data:,x').catch(() => { window.unloaded = true; });"
    )
    wait(browser, "return window.unloaded")
    assert browser.title == frontier().title
    assert browser.execute_script("return window.refused") == "TypeError"
    assert browser.get_log("browser"), "or the tests above would pass without a policy"


def test_hostile_text_stays_text(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["hostile"])
    hover(browser, "#figure-frontier .plot .series.c0 .dot")
    click(browser)
    assert browser.title == " ".join(EXPECTED.split())
    for selector in ("h1", "blockquote", "article:nth-of-type(1) .completion", "#picked .command"):
        assert browser.execute_script("return document.querySelector(arguments[0]).textContent", selector) == EXPECTED
    words = browser.execute_script("return document.querySelector('.token').textContent")
    assert words == EXPECTED.replace("\n", "↵\n")
    assert css(browser, "img") == []
    assert len(css(browser, "script")) == 2
    assert browser.execute_script("return Object.keys(Object.prototype).length") == 0
    change(browser, "#sample-controls select", 1)
    assert (
        browser.execute_script("return document.querySelector('#sample-controls select').selectedOptions[0].text")
        == "__proto__"
    )


def test_a_table_sorts_by_mouse_and_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["frontier"])
    heads = [head.text for head in css(browser, "#table-points th")]
    kl = heads.index("KL, nats")
    head = f"#table-points th:nth-child({kl + 1})"
    assert len(column(browser, "points", kl)) == 16, "the last checkpoint of each run"
    click_on(browser, f"{head} button")
    shown = [float(text.split()[0]) for text in column(browser, "points", kl)]
    assert shown == sorted(shown)
    assert shown[0] < shown[-1]
    assert css(browser, head)[0].get_attribute("aria-sort") == "ascending"
    press(browser, "\ue007")
    assert [float(text.split()[0]) for text in column(browser, "points", kl)] == shown[::-1]
    assert css(browser, head)[0].get_attribute("aria-sort") == "descending"
    assert [th.get_attribute("aria-sort") for th in css(browser, "#table-points th")].count("none") == len(heads) - 1
    click_on(browser, "#table-points .every")
    assert len(column(browser, "points", kl)) == 64


def test_what_was_not_measured_sorts_last_both_ways(browser: Any, tmp_path: Path) -> None:
    points: list[Point] = [
        {"run": f"r{n}", "kl": n, "reward": 1.0, "length": length} for n, length in enumerate((9.0, None, 70.0))
    ]
    open_page(browser, write_report(FrontierReport("t", points=points), tmp_path / "r.html"))
    orders = []
    for _ in range(2):
        click_on(browser, "#table-points th:nth-child(4) button")
        orders.append(column(browser, "points", 0))
    assert orders == [["r0", "r2", "r1"], ["r2", "r0", "r1"]]


def test_pointing_at_a_run_tells_its_run_step_and_settings(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["frontier"])
    assert not css(browser, "#figure-frontier .tip")[0].is_displayed()
    hover(browser, "#figure-frontier .plot .series.c1 .dot", -1)
    tip = css(browser, "#figure-frontier .tip")[0]
    assert tip.is_displayed()
    for words in (
        "ppo-kl0.02-s1, step 120",
        "kl.coef",
        "0.02",
        "5.060 ± 0.152",
        "VADER",
        "update.key0",
        "6 more settings",
    ):
        assert words in tip.text
    hover(browser, "#about h2")
    assert not tip.is_displayed()


def test_a_picked_run_shows_its_command_its_configuration_and_its_samples(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["frontier"])
    before = css(browser, "#sample")[0].text
    hover(browser, "#figure-frontier .plot .series.c0 .dot:last-of-type")
    click(browser)
    picked = css(browser, "#picked")[0]
    assert "rloo-kl0.2-s0, step 120" in picked.text
    assert css(browser, "#picked .command")[0].text == "rlhf-pg train rloo kl.coef=0.2 run.seed=0"
    assert len(css(browser, "#picked details .pairs > div")) == 11
    assert css(browser, "tr.chosen .pick")[0].text == "rloo-kl0.2-s0"
    after = css(browser, "#sample")[0].text
    assert before != after
    assert "a second run" in after


def test_the_keyboard_goes_through_the_points(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["frontier"])
    browser.execute_script("document.querySelector('#figure-frontier .plot > svg').focus()")
    press(browser, "\ue014")
    tip = css(browser, "#figure-frontier .tip")[0]
    assert "optimum" in tip.text
    assert "0.664" in tip.text
    press(browser, "\ue012")
    assert "ppo-kl0.02-s1, step 120" in tip.text
    press(browser, "\ue007")
    assert "run.seed=1" in css(browser, "#picked .command")[0].text
    press(browser, "\ue00c")
    assert not tip.is_displayed()


def test_series_switch_off_and_the_axis_changes(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["frontier"])
    count = len(css(browser, "#figure-frontier .plot .series"))
    switches = css(browser, "#figure-frontier .switch")
    assert [switch.text for switch in switches] == ["optimum", "best of n, KL at most", "TRL RLOO", "rloo", "ppo"]
    switches[0].click()
    assert len(css(browser, "#figure-frontier .plot .series")) == count - 2, "the optimum and its interval"
    assert switches[0].get_attribute("aria-pressed") == "false"
    ticks = """return [...document.querySelectorAll(`#figure-${arguments[0]} .axes .tick`)]
        .map(line => line.getAttribute('x1')).join()"""
    before = [browser.execute_script(ticks, name) for name in ("frontier", "audit-length")]
    change(browser, "#figure-frontier select", 1, index=1)
    after = [browser.execute_script(ticks, name) for name in ("frontier", "audit-length")]
    assert all(a != b for a, b in zip(before, after, strict=True)), "the small figures follow"
    assert "square-root" not in css(browser, "#figure-audit-length svg")[0].text


def test_each_view_of_the_figure_draws(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["frontier"])
    names = [
        option.text for option in css(browser, "#figure-frontier select")[0].find_elements("css selector", "option")
    ]
    assert names == ["VADER", "length-free gold", "win rate against the reference", "efficiency"]
    for index, name in enumerate(names):
        change(browser, "#figure-frontier select", index)
        assert css(browser, "#figure-frontier .axes .name")[1].text == name
        assert len(css(browser, "#figure-frontier .plot .series")) >= 16
    assert browser.get_log("browser") == []


def test_tokens_are_shaded_and_told(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["frontier"])
    tokens = css(browser, ".completion .token")
    assert "".join(token.get_attribute("textContent") for token in tokens) == visible(
        "".join(re.findall(r"\s*\S+", HOSTILE)[:9])
    )
    # Thresholds are 0.1, 0.2, 0.5, 1 and 2 nats at a 99th percentile of 1.28, of contributions 0.01 · 2^n.
    levels_ = [token.get_attribute("class").split()[1] for token in tokens]
    assert levels_ == ["p0", "p0", "p0", "p0", "p1", "p2", "p3", "p4", "p5"]
    assert tokens[8].get_attribute("title") == "KL 2.5600 nats, advantage 0.300"
    browser.execute_script("arguments[0].focus()", tokens[0])
    press(browser, "\ue014")
    assert "KL 0.0200 nats" in css(browser, ".reading")[0].text
    hover(browser, ".completion .token:last-of-type")
    assert "KL 2.5600 nats" in css(browser, ".reading")[0].text
    change(browser, "#sample-controls select", 1, index=-1)
    assert {token.get_attribute("class").split()[1][0] for token in css(browser, ".completion .token")} == {"p", "n"}
    assert css(browser, ".legend")[0].text.startswith("advantage, at least")


def test_samples_over_time(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["run"])
    assert "held 3" in css(browser, "#sample")[0].text
    browser.execute_script("document.querySelector('#sample-controls input[name=step]').focus()")
    press(browser, "\ue012")
    assert "held 3" not in css(browser, "#sample")[0].text
    assert browser.execute_script("return document.activeElement.name") == "step", "the slider keeps the focus"
    press(browser, "\ue014")
    assert "held 3" in css(browser, "#sample")[0].text
    assert "held 0" in css(browser, "#sample")[0].text


WIDER = """const wide = document.documentElement.clientWidth;
    return [document.documentElement.scrollWidth - wide, ...[...document.querySelectorAll('body *')]
    .filter(one => !one.closest('.scroll table, option, svg') && one.getBoundingClientRect().right > wide + 1)
    .map(one => one.tagName + '.' + one.className)]"""


@pytest.mark.parametrize(("width", "media"), [(360, "screen"), (1200, "screen"), (700, "print")])
@pytest.mark.parametrize("name", ["frontier", "run", "hostile"])
def test_nothing_is_wider_than_a_phone_or_a_sheet(
    browser: Any, pages: dict[str, Path], name: str, width: int, media: str
) -> None:
    open_page(browser, pages[name], width, 800, media)
    assert browser.execute_script(WIDER) == [0]


def test_it_prints(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["frontier"])
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    assert printed.startswith(b"%PDF")
    open_page(browser, pages["frontier"], 700, 900, "print")
    wide = browser.execute_script(
        "return [...document.querySelectorAll('table')].map(one => one.getBoundingClientRect().right)"
    )
    assert max(wide) <= 700, "a sheet does not scroll"
    assert not any(one.is_displayed() for one in css(browser, ".every, .slider, .reading"))


def test_the_tables_stand_without_the_script(browser: Any, pages: dict[str, Path]) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(pages["frontier"].as_uri())
        assert "The tables stand without it" in css(browser, "noscript")[0].text
        assert "rloo-kl0.05-s0" in css(browser, "#table-points")[0].text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
