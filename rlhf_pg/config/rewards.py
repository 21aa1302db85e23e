"""The section ``reward``: functions, how they are combined, and what becomes of a row that fails."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from rlhf_pg.config.base import Section, key

Normalize = Literal["none", "batch", "running"]
Combine = Literal["sum", "mean", "min", "mean_minus_std", "product", "gate"]
_OF_A_FUNCTION = ("args", "factory", "process", "timeout", "workers")


class RewardFunctionConfig(Section):
    """One reward: a function, or ``members`` that are combined. A plain string stands for ``{function: string}``."""

    function: str = key(
        "",
        "path/to/file.py:name, package.module:name, a classifier's folder or hub id, a server's address, or a builtin's name; "
        "openrlhf:, verl: or reasoning_gym: before a function of theirs.",
    )
    name: str | None = key(None, "Its name in the metrics; None: the function's own.")
    weight: float = key(1.0, "Its weight in the sum; 0 measures it and lets it decide nothing.")
    args: dict[str, Any] = key({}, "Keyword arguments, given at each call (to the factory, once, with factory: true).")
    factory: bool = key(False, "The name is called once with args and returns the reward function.")
    process: Literal["auto", "worker", "main"] = key(
        "auto",
        "worker: in a process that can be killed; main: in the run's own; auto: a worker for functions that have a name, the "
        "run's own for models, servers and functions from Python.",
    )
    timeout: float | None = key(None, "Seconds that a call in a worker may take; None: reward.timeout.", gt=0)
    workers: int = key(1, "Worker processes that share the rows, whole groups each.", ge=1)
    clip: tuple[float, float] | None = key(None, "Clip its values to [low, high] before the weight.")
    normalize: Normalize = key(
        "none",
        "Shift and scale its values to mean 0 and deviation 1, over the batch or the run so far; in training only.",
    )
    members: tuple[RewardFunctionConfig, ...] = key((), "Rewards that are combined into this one, instead of function.")
    combine: Combine = key(
        "sum",
        "How members make one value: sum; mean, min or mean_minus_std (an ensemble); product; gate: the last one's value where "
        "each before it is above 0.",
    )
    std_coef: float = key(1.0, "lambda of mean_minus_std: mean - lambda * the members' standard deviation.", ge=0)
    otherwise: float = key(0.0, "What a closed gate gives.")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"function": value} if isinstance(value, str) else value

    @field_validator("clip")
    @classmethod
    def _ordered(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        return ordered(clip)

    @model_validator(mode="after")
    def _whole(self) -> RewardFunctionConfig:
        if bool(self.function) == bool(self.members):
            raise ValueError("a reward is either function: NAME or members: [...]; give one of the two")
        fields = type(self).model_fields
        given = [name for name in fields if getattr(self, name) != fields[name].default]
        if self.members:
            wrong = [name for name in _OF_A_FUNCTION if name in given]
            rule = "belongs to a function; write it at the members"
        else:
            wrong = [name for name in ("combine", "std_coef", "otherwise") if name in given]
            rule = "belongs to a reward that has members"
        wrong += ["std_coef"] if "std_coef" in given and self.combine != "mean_minus_std" and self.members else []
        wrong += ["otherwise"] if "otherwise" in given and self.combine != "gate" and self.members else []
        if wrong:
            used = {"std_coef": "belongs to combine: mean_minus_std", "otherwise": "belongs to combine: gate"}
            raise ValueError(f"{wrong[0]} {used.get(wrong[0], rule) if self.members else rule}")
        counted = sum(member.weight != 0 for member in self.members)
        if self.members and counted < (1 if self.combine == "sum" else 2):
            least = "one member" if self.combine == "sum" else "two members"
            raise ValueError(
                f"combine: {self.combine} needs at least {least} with a weight other than 0, got {counted}"
            )
        return self


class RewardConfig(Section):
    """What is maximised: the weighted sum of the functions."""

    functions: tuple[RewardFunctionConfig, ...] = key((), "The reward functions.")
    clip: tuple[float, float] | None = key(None, "Clip the sum to [low, high], in reward units.")
    normalize: Normalize = key(
        "none", "Shift and scale the sum to mean 0 and deviation 1: over the batch, or over the run so far."
    )
    missing_eos_penalty: float = key(0.0, "Subtracted from the score of a response cut at the token limit.", ge=0)
    skip_special_tokens: bool = key(True, "Reward functions read text without special tokens.")
    timeout: float = key(300.0, "Seconds that a call in a worker process may take; then the worker is killed.", gt=0)
    worker_memory_gb: float = key(
        16.0, "The most data memory of a worker process, where the system can limit it.", gt=0
    )
    on_error: Literal["stop", "unscorable"] = key(
        "stop", "A function that fails on a row stops the run, or the row counts as one that it cannot score."
    )
    max_unscorable: float = key(
        0.1,
        "With on_error=unscorable: the largest share of a call's rows (and one row always) that may fail.",
        gt=0,
        le=1,
    )

    @field_validator("clip")
    @classmethod
    def _ordered(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        return ordered(clip)


def ordered(clip: tuple[float, float] | None) -> tuple[float, float] | None:
    """Refuse bounds of which the first is not the smaller."""
    if clip is not None and clip[0] >= clip[1]:
        raise ValueError(f"[low, high] needs low < high, got {list(clip)}")
    return clip
