"""Model-written text on a terminal: made harmless, and laid out as a table."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from rlhf_pg.types import FinishReason

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Control, format (bidirectional marks, zero-width characters, tags), lone surrogate, private and unassigned characters,
# line and paragraph separators: whatever can move the cursor, reorder or hide text.
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_PROMPT_CHARACTERS = 80
_COMPLETION_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One completion as the table of samples shows it."""

    prompt: str
    completion: str
    reward: float | None  # reward units; None: no function could score it
    kl: float | None  # nats, summed over the completion's tokens; None: not measured
    finish_reason: FinishReason


def safe_text(text: str) -> str:
    """Text in which characters that could steer a terminal or reorder a line are escapes such as ``\\u202e``."""
    return "".join(_SHORT.get(c) or (_escape(c) if unicodedata.category(c) in _UNSAFE else c) for c in text)


def samples_table(step: int, rows: Sequence[SampleRow]) -> Table:
    """A table of samples: the end of the prompt, the completion, reward, KL, and why it ended.

    Cells are plain ``Text``, in which rich reads no markup.
    """
    table = Table(title=Text(f"samples of step {step}"), title_justify="left", show_lines=True, expand=True)
    table.add_column("prompt", ratio=2, overflow="fold")
    table.add_column("completion", ratio=5, overflow="fold")
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("KL, nats", justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    for row in rows:
        prompt, completion = row.prompt, row.completion
        if len(prompt) > _PROMPT_CHARACTERS:
            prompt = "…" + prompt[-_PROMPT_CHARACTERS:]
        if len(completion) > _COMPLETION_CHARACTERS:
            completion = completion[:_COMPLETION_CHARACTERS] + "…"
        table.add_row(
            Text(safe_text(prompt), style="dim"),
            Text(safe_text(completion)),
            Text("–" if row.reward is None else f"{row.reward:.3f}"),
            Text("–" if row.kl is None else f"{row.kl:.2f}"),
            Text(row.finish_reason),
        )
    return table


def _escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
