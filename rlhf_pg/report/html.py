"""Pages as one HTML file that opens offline and runs nothing but its own script."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from rlhf_pg.report.data import Completion, FrontierReport, RunReport, SampleSet, Token
from rlhf_pg.report.frontier import frontier_page
from rlhf_pg.report.page import Page, plain, visible
from rlhf_pg.report.run_page import run_page

_SCRIPTS = ("base.js", "scale.js", "chart.js", "samples.js", "page.js")
# What would end the script element or a comment in it; JSON's own escapes stand for it.
_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_report(data: FrontierReport | RunReport, path: Path | str) -> Path:
    """Write a report as one HTML file, replaced in one move.

    The file loads nothing. Its content security policy allows the one script and the one style sheet in it, by their
    hashes. What a model wrote is escaped in the HTML, is data to the script, and reaches the page as text only; control
    and bidirectional characters in it are shown as escapes.

    Args:
        data: what is reported.
        path: the file to write; its folder is made.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = frontier_page(data) if isinstance(data, FrontierReport) else run_page(data)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(render(page), encoding="utf-8", newline="\n")
    os.replace(beside, path)
    return path


def render(page: Page) -> str:
    """A page as HTML."""
    script, style = "\n".join(map(_asset, _SCRIPTS)), _asset("page.css")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    return environment.from_string(_asset("page.html.j2")).render(
        page=page, policy=policy, script=Markup(script), style=Markup(style), data=Markup(_json(_payload(page)))
    )


def _payload(page: Page) -> dict[str, Any]:
    return {
        "figures": [plain(figure) for section in page.sections for figure in section.figures],
        "tips": [plain(tip) for tip in page.tips],
        "samples": [_set(found) for found in page.samples],
        "levels": {name: levels(page.samples, name) for name in ("kl", "advantage")},
    }


def levels(sets: Sequence[SampleSet], name: str) -> list[float]:
    """Five thresholds at which a token's shade deepens, in nats or reward units; none where no token has the number.

    The last is the 99th percentile of what the tokens have in size, rounded up to 1, 2 or 5 times a power of ten; the
    others are a twentieth, a tenth, a fifth and a half of it.
    """
    sizes = sorted(
        abs(value)
        for found in sets
        for sample in found["samples"]
        for side in (sample["policy"], sample.get("reference") or {})
        for token in side.get("tokens", ())
        if (value := _of(token, name)) is not None
    )
    if not sizes or sizes[-1] == 0:
        return []
    size = sizes[int(0.99 * (len(sizes) - 1))] or sizes[-1]
    power = 10.0 ** len(str(int(size))) if size >= 1 else 1.0
    while power / 10 >= size:
        power /= 10
    top = next(step for step in (power / 5, power / 2, power) if step >= size)
    return [float(f"{top / divisor:.3g}") for divisor in (20, 10, 5, 2, 1)]


def _of(token: Token, name: str) -> float | None:
    value: float | None = plain(token.get(name))
    return value


def _set(found: SampleSet) -> dict[str, Any]:
    samples = [
        {"prompt": plain(one["prompt"]), "policy": _side(one["policy"]), "reference": _side(one.get("reference"))}
        for one in found["samples"]
    ]
    return {"name": plain(found["name"]), "step": plain(found.get("step")), "samples": samples}


def _side(side: Completion | None) -> dict[str, Any] | None:
    if side is None:
        return None
    tokens = [[plain(token["text"]), _of(token, "kl"), _of(token, "advantage")] for token in side.get("tokens", ())]
    sizes = [token[1] for token in tokens]
    kl = side.get("kl", sum(sizes) if sizes and None not in sizes else None)
    return {
        "text": plain(side.get("text", "")),
        "tokens": tokens,
        "components": plain(dict(side.get("components", {}))),
        "reward": plain(side.get("reward")),
        "kl": plain(kl),
        "end": plain(side.get("finish_reason", "")),
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).translate(_IN_SCRIPT)


def _finalize(value: Any) -> Any:
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def _asset(name: str) -> str:
    return resources.files("rlhf_pg.report").joinpath("assets", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    """The hash by which a policy names a script or style; the element must hold the text and nothing around it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
