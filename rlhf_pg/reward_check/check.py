"""``rlhf-pg reward check``: score real completions, and say what a careful person would ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.config.tree import Config
from rlhf_pg.reward_check.completions import gather
from rlhf_pg.reward_check.figure import check_figure
from rlhf_pg.reward_check.findings import findings, plain, table_of
from rlhf_pg.reward_check.measure import measure
from rlhf_pg.reward_check.report import print_findings
from rlhf_pg.rewards import RewardRunner
from rlhf_pg.tracking import safe_text

FIGURE, ROWS = "check.png", "rows.jsonl"


def check_reward(
    config: Config,
    reward: RewardConfig | Sequence[Callable[..., Any] | str] | None = None,
    *,
    policy: bool = False,
    column: str | None = None,
    group_size: int | None = None,
    max_new_tokens: int | None = None,
    rows: int | None = None,
    seed: int = 0,
    once: bool = False,
    out: Path | None = None,
    title: str = "reward",
    console: Console | None = None,
) -> dict[str, Any]:
    """Score completions and report on the reward. No row stops it: one that fails is counted, with the reason.

    Args:
        config: its data, policy and sampling; its reward, unless ``reward`` is given. Normalisation is left out.
        reward: a section ``reward``, or functions or names.
        policy: sample from ``config.policy`` even if the data have completions.
        column: the column with completions: a string or messages, or a list of these, which is a group. Default: pairs
            (columns chosen and rejected), else the column completion, else the policy samples.
        group_size: completions sampled per prompt; default: the configuration's.
        max_new_tokens: the most tokens of a sampled completion; default: the configuration's.
        rows: at most so many prompts; default 64 to sample for, 1000 to read.
        seed: of choice and sampling.
        once: score once, where a call costs money; whether it is repeatable is then not known.
        out: a folder for ``check.png`` and ``rows.jsonl``.
        title: the reward's name, for the table.
        console: where to print; standard output by default.

    Returns:
        The findings, as :func:`rlhf_pg.reward_check.findings.findings` gives them.

    Raises:
        RlhfPgError: the data, the policy or the reward cannot be used at all.
    """
    console = console or Console()
    section = reward if isinstance(reward, RewardConfig) else config.reward
    # A row that fails is a finding here, not an end.
    section = section.model_copy(update={"on_error": "unscorable", "max_unscorable": 1.0})
    device = "cuda" if torch.cuda.is_available() and config.run.device == "auto" else "cpu"
    runner = RewardRunner(section, None if isinstance(reward, RewardConfig) else reward, device=device)
    try:
        completions = gather(
            config,
            policy=policy,
            column=column,
            group_size=group_size,
            max_new_tokens=max_new_tokens,
            rows=rows,
            seed=seed,
            say=lambda text: console.print(safe_text(text), markup=False, highlight=False, soft_wrap=True),
        )
        measured = measure(runner, completions.rollout, once=once)
    finally:
        runner.close()
    found = findings(
        measured,
        completions,
        step_rows=config.rollout.prompts_per_step * config.rollout.group_size,
        nested={node.name: [below.name for below in node.tree()] for root in runner.rewards for node in root.tree()},
    )
    print_findings(found, title, console)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        check_figure(found, measured.totals, completions, out / FIGURE)
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in table_of(measured, completions))
        (out / ROWS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
        console.print(f"{FIGURE} and {ROWS} are in {out}", markup=False, highlight=False, soft_wrap=True)
    return {name: plain(value) for name, value in found.items()}
