"""The completions that a reward is tried on: sampled from a policy, a column of the data, or pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_pg.config.tree import Config
from rlhf_pg.data import load_prompts
from rlhf_pg.errors import ConfigError, DataError, ModelError
from rlhf_pg.loading import eos_ids, load_causal_lm, load_tokenizer
from rlhf_pg.models import Policy, turn_dropout_off
from rlhf_pg.ops.sampling import generator, row_uniforms
from rlhf_pg.prompts import RESERVED, USUAL, as_asked, find_prompts
from rlhf_pg.rewards import text_rollout
from rlhf_pg.rollout import Sampler
from rlhf_pg.sources import Say, Table, read_table
from rlhf_pg.types import Prompt, Rollout

PAIR = ("chosen", "rejected")
COLUMN = "completion"
MOST = {"sampled": 64, "read": 1000}  # prompts, where nothing is said


@dataclass(frozen=True, slots=True)
class Completions:
    """Completions, and where they come from."""

    rollout: Rollout
    origin: str  # in words
    tokens: str  # what a token is, in words
    pairs: bool = False  # each group is a chosen text and a rejected one


def gather(
    config: Config,
    *,
    policy: bool,
    column: str | None,
    group_size: int | None,
    max_new_tokens: int | None,
    rows: int | None,
    seed: int,
    say: Say,
) -> Completions:
    """Take completions from ``column``; or sample them, if a policy was named; or take what the data have.

    Without ``column`` and ``policy`` these are the columns ``chosen`` and ``rejected``, or the column ``completion``, or
    else samples of the configuration's policy.

    Args:
        config: its data, policy and sampling are used.
        policy: the user named a policy.
        column: the column with completions.
        group_size: completions sampled per prompt; default: the configuration's.
        max_new_tokens: the most tokens of a sampled completion; default: the configuration's.
        rows: at most so many prompts, chosen by ``seed``.
        seed: of choice and sampling.
        say: receives what the data say of themselves.

    Raises:
        DataError: the data lack the column, or a row cannot be used.
        ConfigError: there is neither a column nor a policy, or the sampling is told and nothing is sampled.
    """
    if policy and column is None:
        return _sampled(config, group_size, max_new_tokens, rows, seed, say)
    table = read_table(config.data.source, config.data.split, "data.source", say)
    listed = ", ".join(table.columns)
    if column is None and not all(name in table.columns for name in PAIR) and COLUMN not in table.columns:
        if config.policy.model:
            return _sampled(config, group_size, max_new_tokens, rows, seed, say)
        raise ConfigError(
            f"there is nothing to score: name a policy to sample from in --policy, or the column with completions in "
            f"--column; the columns of {table.name} are {listed}"
        )
    if column is not None and column not in table.columns:
        raise DataError(f"--column {column} is no column of {table.name}; its columns: {listed}")
    if group_size is not None or max_new_tokens is not None:
        raise ConfigError(
            f"--group-size and --max-new-tokens are of sampled completions, and these are columns of {table.name}; leave them "
            "out, or name a policy in --policy and no --column"
        )
    tokenizer = load_tokenizer(config.policy) if config.policy.model else None
    tokens = "words" if tokenizer is None else f"tokens of {config.policy.model}"
    pairs = column is None and all(name in table.columns for name in PAIR)
    taken = PAIR if pairs else (column or COLUMN,)
    completions = [_texts([table.columns[name][i] for name in taken], table.row(i)) for i in range(len(table))]
    size = len(completions[0]) if completions else 1
    for number, group in enumerate(completions):
        if len(group) != size or not group:
            raise DataError(
                f"{table.row(number)} has {len(group)} completions and the first has {size}; give each row as many, or one"
            )
    prompts, columns = _prompts(table, config, taken, say)
    keep = _some(len(prompts), rows or MOST["read"], seed)
    rollout = text_rollout(
        [prompts[i] for i in keep],
        [text for i in keep for text in completions[i]],
        {name: [values[i] for i in keep] for name, values in columns.items()},
        group_size=size,
        tokenizer=tokenizer,
    )
    origin = f"{' and '.join(taken)} of {table.name}"
    return Completions(rollout, origin, tokens, pairs)


def _sampled(
    config: Config, group_size: int | None, max_new_tokens: int | None, rows: int | None, seed: int, say: Say
) -> Completions:
    name = config.policy.model
    size, most = group_size or config.rollout.group_size, max_new_tokens or config.rollout.max_new_tokens
    tokenizer = load_tokenizer(config.policy)
    network = load_causal_lm(name, config.policy, "policy.model")
    turn_dropout_off(network)
    policy = Policy(network.to("cuda" if torch.cuda.is_available() and config.run.device == "auto" else "cpu"))
    ends = () if config.rollout.ignore_eos else eos_ids(policy, tokenizer)
    if not ends and not config.rollout.ignore_eos:
        raise ModelError(
            f"policy.model={name} and its tokenizer name no end-of-sequence token; set eos_token_id in its config.json"
        )
    prompts = load_prompts(
        config.data.model_copy(update={"eval_size": 0, "eval_source": None}), tokenizer, seed=seed, say=say
    ).train
    batch = prompts.batch(0, min(rows or MOST["sampled"], len(prompts)))
    sampler = Sampler(
        tokenizer,
        ends,
        most,
        temperature=config.rollout.temperature,
        stop=config.rollout.stop,
        batch_rows=config.rollout.batch_rows,
        skip_special_tokens=config.reward.skip_special_tokens,
    )
    numbers = row_uniforms(seed, "reward check", rows=range(len(batch) * size), columns=most)
    rollout = sampler(policy, batch, numbers)
    return Completions(rollout, f"samples of {name} for prompts of {prompts.name}", f"tokens of {name}")


def _some(total: int, count: int, seed: int) -> list[int]:
    """At most ``count`` of the rows, in their order."""
    return sorted(torch.randperm(total, generator=generator(seed, "reward check"))[:count].tolist())


def _prompts(
    table: Table, config: Config, taken: tuple[str, ...], say: Say
) -> tuple[list[Prompt], dict[str, list[Any]]]:
    """The prompts, and the columns that a reward is given."""
    data = config.data
    # A column that is tried as completions may hold the right answers too; but no column may be called as an argument is.
    rest = {name: values for name, values in table.columns.items() if name not in taken or name not in RESERVED}
    if data.prompt_column is None and not any(name in rest for name in USUAL):
        say(
            f"Prompts: {table.name} has none of the columns {', '.join(USUAL)}; a prompt is what comes before the completion: "
            "the earlier messages, or nothing."
        )
        rest["prompt"] = [_before(table, taken, i) for i in range(len(table))]
        say = _silent
    found, columns = find_prompts(Table(table.name, rest), data.prompt_column, say)
    prompts, _ = as_asked(found, data.chat, data.system_prompt, table)
    return prompts, columns


def _silent(_: str) -> None:
    """For what has been said already."""


def _before(table: Table, taken: tuple[str, ...], row: int) -> Any:
    """What comes before the completions of a row: the messages that they share, or nothing."""
    heads = [value[:-1] for name in taken if isinstance(value := table.columns[name][row], list)]
    heads = [head for head in heads if head and all(isinstance(message, Mapping) for message in head)]
    if len(heads) < len(taken):
        return ""
    if any(head != heads[0] for head in heads):
        raise DataError(
            f"{table.row(row)}: {' and '.join(taken)} differ before their last message; give the prompt in a column of its own"
        )
    return heads[0]


def _texts(values: list[Any], where: str) -> list[str]:
    """The completions in a row's cells: strings, message lists, or one cell with a list of either."""
    if len(values) == 1 and isinstance(values[0], list) and not _is_messages(values[0]):
        values = values[0]
    return [_text(value, where) for value in values]


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if _is_messages(value) and isinstance(value[-1].get("content"), str):
        return str(value[-1]["content"])
    raise DataError(
        f"{where} has a completion of type {type(value).__name__}; a string, a list of messages whose last one has text, or "
        "a list of these is needed"
    )
