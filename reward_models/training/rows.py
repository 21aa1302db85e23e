"""From a table's rows to the examples that a reward model is trained on, each row checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reward_models.functions.text import Completion, text_of
from reward_models.training.columns import USUAL, column_of, label_name
from reward_models.training.fitting import Example
from reward_models.training.objectives import Objective
from reward_models.training.texts import encode
from rlhf_pg.errors import DataError
from rlhf_pg.sources import Table
from rlhf_pg.types import Prompt

BadRows = Literal["stop", "drop"]


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads rows of one table for one objective.

    Args:
        tokenizer: the reward model's.
        objective: decides which columns are needed.
        columns: our names to the table's, where they differ: prompt, chosen, rejected, text, label, margin, weight.
        max_tokens: longer texts lose their beginning.
        append_eos: end each text with the end-of-sequence token.
        bad_rows: stop at a row that cannot be used, or drop it.
    """

    tokenizer: Any
    objective: Objective
    columns: Mapping[str, str]
    max_tokens: int
    append_eos: bool = False
    bad_rows: BadRows = "stop"

    def read(self, table: Table, labels: Sequence[str], say: Callable[[str], object]) -> list[Example]:
        """The examples of a table.

        Args:
            table: the rows.
            labels: of a classification, the names in their order.
            say: receives a sentence on rows that were dropped and on a prompt that stands in the texts.

        Raises:
            DataError: a column is absent, or a row cannot be used and ``bad_rows`` is "stop", or no row is left.
        """
        found = self._found(table)
        needed = ("chosen", "rejected") if self.objective == "bradley_terry" else ("text", "label")
        for name in needed:
            if name not in found:
                raise DataError(
                    f"{table.name} has no column for {name!r} ({', '.join(USUAL[name])}), which {self.objective} needs; its "
                    f"columns: {', '.join(table.columns)}. Name the right one with columns, such as {name}=COLUMN"
                )
        included = self._prompt_included(found)
        if included:
            say(f"The texts of {table.name} begin with their prompt, which is not put before them again.")
        examples, problems = [], []
        for index in range(len(table)):
            row = {name: values[index] for name, values in found.items()}
            try:
                examples.append(self._example(row, included, labels, table.row(index)))
            except DataError as error:
                problems.append(error)
        if problems and self.bad_rows == "stop":
            more = f" ({len(problems)} such rows; bad_rows=drop leaves them out)" if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more}")
        if problems:
            say(f"{len(problems)} of {len(table)} rows of {table.name} were dropped; the first: {problems[0]}")
        if not sum(example.weight for example in examples):
            raise DataError(f"{table.name} has no row of a weight above 0 that can be used")
        return examples

    def _found(self, table: Table) -> dict[str, list[Any]]:
        """Our names to the table's values."""
        names = {name: column_of(table, name, self.columns) for name in USUAL}
        return {name: table.columns[column] for name, column in names.items() if column is not None}

    def _prompt_included(self, found: Mapping[str, Sequence[Any]]) -> bool:
        """Whether every text of every row begins with the row's prompt."""
        sides = ("chosen", "rejected") if self.objective == "bradley_terry" else ("text",)
        if "prompt" not in found:
            return False
        return all(
            prompt and type(prompt) is type(text) and text[: len(prompt)] == prompt
            for side in sides
            for prompt, text in zip(found["prompt"], found[side], strict=True)
        )

    def _example(self, row: Mapping[str, Any], included: bool, labels: Sequence[str], where: str) -> Example:
        prompt: Prompt = "" if row.get("prompt") is None else row["prompt"]
        if not _is_text(prompt):
            raise DataError(f"{where} has a prompt that is neither a string nor messages: {prompt!r}")
        weight = _number(row.get("weight"), f"{where}: weight", low=0.0, absent=1.0)
        before: Prompt = "" if included else prompt
        if self.objective == "bradley_terry":
            texts = tuple(self._ids(before, row[side], f"{where}, column {side},") for side in ("chosen", "rejected"))
            target = _preference(row.get("label"), where)
            margin = _number(row.get("margin"), f"{where}: margin", low=0.0, absent=0.0)
            if margin and target != 1.0:
                raise DataError(f"{where} has a margin of {margin:g} and is no clear preference; set its margin to 0")
            if row["chosen"] == row["rejected"]:
                raise DataError(
                    f"{where} has the same text as chosen and as rejected, so it teaches nothing; remove it"
                )
            if texts[0] == texts[1]:
                raise DataError(
                    f"{where}: chosen and rejected are the same last {self.max_tokens} tokens, or differ in nothing that "
                    "the tokenizer sees; raise max_tokens or remove the row"
                )
            group = _key(prompt) or _shared(row["chosen"], row["rejected"])
            return Example(texts, target, weight, margin, group)
        text = self._ids(before, row["text"], where)
        label = row["label"]
        if self.objective == "regression":
            target = _number(label, f"{where}: label")
        else:
            name = label_name(label, where)
            if name not in labels:
                raise DataError(f"{where} has the label {name!r}, which is none of the training data's: {list(labels)}")
            target = labels.index(name)
        return Example((text,), target, weight, 0.0, _key(prompt) or _key(row["text"]))

    def _ids(self, prompt: Prompt, text: Any, where: str) -> list[int]:
        if not _is_text(text):
            raise DataError(f"{where} has a text that is neither a string nor messages: {text!r}; remove the row")
        if not text_of(text).strip():
            raise DataError(f"{where} has an empty text; remove the row")
        return encode(self.tokenizer, prompt, text, max_tokens=self.max_tokens, where=where, append_eos=self.append_eos)


def _is_text(value: object) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def _number(value: object, what: str, low: float = -math.inf, absent: float | None = None) -> float:
    value = absent if value is None else value
    if isinstance(value, (int, float)) and math.isfinite(value) and value >= low:
        return float(value)
    rule = "a finite number" if low == -math.inf else f"a finite number of at least {low:g}"
    raise DataError(f"{what} is {value!r}; it must be {rule}: mend or remove the row")


def _preference(label: object, where: str) -> float:
    """The share of annotators who preferred the chosen text."""
    if label is None or label == "chosen":
        return 1.0
    if label == "tie":
        return 0.5
    if isinstance(label, (int, float)) and 0.5 <= label <= 1:
        return float(label)
    raise DataError(
        f"{where} has the label {label!r}; a pair's is 'chosen' or 1, 'tie' or 0.5, or the share between them that "
        "preferred the chosen text. Swap the texts of a share below 0.5, or rename a column that means something else"
    )


def _key(text: Completion) -> str:
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=str)


def _shared(chosen: Completion, rejected: Completion) -> str:
    """What stands for the prompt of two whole texts: their messages but the last, or their common lines at the start."""
    if not isinstance(chosen, str):
        return _key(chosen[:-1]) if len(chosen) > 1 else ""
    if not isinstance(rejected, str):
        return ""
    length = next((at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    return chosen[: chosen.rfind("\n", 0, length) + 1]
