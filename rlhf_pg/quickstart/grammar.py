"""A grammar of short reviews whose sentiment is known by construction, in plain Python.

A review answers a prompt such as "Review of the spicy soup:" with one to four clauses, and its gold score is computed
from its text alone: the clauses' sentiment, less what is wrong with it as a review. So it can be computed of anything
that a model writes, and it cannot be raised by repeating "wonderful" or by never coming to an end.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from rlhf_pg.errors import DataError
from rlhf_pg.quickstart.lexicon import (
    ADJECTIVES,
    ADVERBS,
    ANY,
    DAYS,
    KINDS,
    LOOKS,
    PASTS,
    PEOPLE,
    RESOLVES,
    SOFT,
    VERBS,
    Kind,
)

NEGATION = -0.5  # "not great" is bad, though less than "great" is good
BUT = (0.5, 1.5)  # weights of the clauses before and after "but", as VADER has them (Hutto & Gilbert, 2014)

PATIENCE = 14  # words that a reader reads with pleasure
TEDIUM = 0.08  # lost with every further word
REPEATED = 0.15  # lost with every topic or opinion that is given again
BROKEN = 1.0  # lost if no clause follows the grammar; in proportion if some do
UNENDED = 0.5  # lost where the last sentence has no full stop
LOWEST = -2.0

_CLAUSES = (1, 2, 3, 4)
_CLAUSES_ODDS = (20, 35, 30, 15)

_PROMPTS = {
    f"Review of the {modifier} {noun}:": (kind, (i + j) % 5 == 0)
    for kind in KINDS
    for i, modifier in enumerate(kind.modifiers)
    for j, noun in enumerate(kind.nouns)
}


def prompts() -> list[dict[str, str]]:
    """The prompts to train on, each with its ``item``."""
    return _listed(held_out=False)


def held_out_prompts() -> list[dict[str, str]]:
    """Prompts whose items are none of ``prompts()``, though each of their words is in some of those."""
    return _listed(held_out=True)


def _listed(*, held_out: bool) -> list[dict[str, str]]:
    found = [prompt for prompt, (_, held) in _PROMPTS.items() if held is held_out]
    return [{"prompt": prompt, "item": prompt.removeprefix("Review of the ").removesuffix(":")} for prompt in found]


# --- writing --------------------------------------------------------------------------------------------------------


def sample_review(rng: random.Random, prompt: str) -> str:
    """A review, with the space before its first word, so that ``prompt + review`` reads well.

    It holds one to four clauses, no topic or opinion twice, "but" only where the clauses disagree. Good and bad are
    equally likely, so clauses have a mean valence of about 0.

    Args:
        rng: where the chance comes from.
        prompt: one of ``prompts()`` or ``held_out_prompts()``.

    Raises:
        DataError: it is neither.
    """
    if prompt not in _PROMPTS:
        raise DataError(f"prompt {prompt!r} is not of the review grammar; take one of prompts() or held_out_prompts()")
    kind, mood, spent = _PROMPTS[prompt][0], rng.choice((-1, 0, 1)), set[str]()
    text, before = "", 0.0
    for number in range(rng.choices(_CLAUSES, _CLAUSES_ODDS)[0]):
        clause, meaning = _fresh_clause(rng, kind, mood, spent)
        spent |= meaning.marks
        if number == 0:
            text = f" {_capital(clause)}"
        elif before * meaning.valence < 0 and rng.random() < 0.7:
            text += f", but {clause}"
        elif before * meaning.valence >= 0 and rng.random() < 0.6:
            text += f", and {clause}"
        else:
            text += f". {_capital(clause)}"
        before = meaning.valence
    return f"{text}."


def _fresh_clause(rng: random.Random, kind: Kind, mood: int, spent: set[str]) -> tuple[str, _Clause]:
    """A clause and what it says, with no topic or opinion of ``spent``, in ``mood`` more often than not."""
    while True:
        text = _clause(rng, kind)
        meaning = _parse(text.lower(), kind)
        assert meaning is not None
        if not meaning.marks & spent and (meaning.valence * mood >= 0 or rng.random() < 0.3):
            return text, meaning


def _clause(rng: random.Random, kind: Kind) -> str:
    aspect = f"the {rng.choice(kind.aspects)}"
    form = rng.choices(("is", "verb", "resolve", "fact"), (62, 20, 11, 7))[0]
    if form == "is":
        subject = aspect if rng.random() < 0.8 else "it"
        adjective = rng.choice(tuple(ADJECTIVES))
        words = [rng.choice(tuple(ADVERBS)), adjective] if rng.random() < 0.45 else [adjective]
        if rng.random() < 0.2:
            words = ["not", *([rng.choice(SOFT)] if rng.random() < 0.4 else []), adjective]
        return " ".join([subject, rng.choice(LOOKS), *words])
    if form == "verb":
        verb = rng.choice(tuple(VERBS))
        if rng.random() < 0.25:
            return f"I did not {verb} {aspect}"
        return f"I {'really ' if rng.random() < 0.3 else ''}{verb.removesuffix('e')}ed {aspect}"
    if form == "resolve":
        return f"I {rng.choice(tuple(RESOLVES))} {rng.choice(('recommend it', f'{kind.again[0]} it again'))}"
    return rng.choice((f"I tried it on {rng.choice(DAYS)}", f"my {rng.choice(PEOPLE)} chose it"))


def _capital(clause: str) -> str:
    return clause[0].upper() + clause[1:]


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Clause:
    """What a clause says: how good it finds the thing, and the topic and opinion that should not come again."""

    valence: float
    marks: frozenset[str]


def gold_score(prompt: str, completion: str) -> float:
    """How good the review says the thing is, less what is wrong with it as a review; from -2 to below 1.

    ``gold = x / sqrt(x^2 + 1) - 0.08 max(0, words - 14) - faults``

    where x is the sum of the clauses' valences, those next to a "but" weighted 0.5 before it and 1.5 after it, and the
    faults are 0.15 for each repeat, the share of clauses outside the grammar, and 0.5 for want of a full stop. A clause
    outside the grammar has valence 0; so has one on an aspect that the thing has not, such as a soup's plot.

    Args:
        prompt: the prompt; any aspect is allowed where it is not of this grammar.
        completion: any text; upper case and spaces do not matter.

    Source: the bounded sum is the compound score of VADER (Hutto & Gilbert, 2014), with 1 for its 15.
    """
    total, faults, words = _read(prompt, completion)
    return max(LOWEST, total / math.sqrt(total**2 + 1) - TEDIUM * max(0, words - PATIENCE) - faults)


def hasty_score(prompt: str, completion: str) -> float:
    """What a hasty annotator likes: ``x / 2 - faults``, as in ``gold_score``, never sated by praise and never tired.

    It goes with the gold score as long as reviews are short, and not where they have become long.
    """
    total, faults, _ = _read(prompt, completion)
    return total / 2 - faults


def _read(prompt: str, completion: str) -> tuple[float, float, int]:
    """The weighted sum of the clauses' valences, the cost of the faults, and the number of words."""
    kind = _PROMPTS[prompt.strip()][0] if prompt.strip() in _PROMPTS else ANY
    tokens = re.findall(r"\w+|[^\w\s]", completion.lower())
    ended = tokens[-1:] == ["."]
    clauses, weights = _split(tokens[:-1] if ended else tokens)
    meanings = [_parse(clause, kind) for clause in clauses]
    known = [meaning for meaning in meanings if meaning]
    marks = [mark for meaning in known for mark in meaning.marks]
    broken = 1 - len(known) / len(meanings)
    faults = REPEATED * (len(marks) - len(set(marks))) + BROKEN * broken + UNENDED * (not ended)
    total = sum(weight * meaning.valence for weight, meaning in zip(weights, meanings, strict=True) if meaning)
    return total, faults, sum(map(str.isalnum, tokens))


def _split(tokens: list[str]) -> tuple[list[str], list[float]]:
    """The clauses, which ".", ", and" or ", but" join, and their weights; a clause may be empty."""
    first, *rest = re.split(r"(?<!\S)(\.|, and|, but)(?!\S)", " ".join(tokens))
    clauses, weights = [first.strip()], [1.0]
    for joint, clause in zip(rest[::2], rest[1::2], strict=True):
        clauses.append(clause.strip())
        weights.append(1.0)
        if joint == ", but":
            weights[-2:] = (weights[-2] * BUT[0], weights[-1] * BUT[1])
    return clauses, weights


def _parse(clause: str, kind: Kind) -> _Clause | None:
    """What a clause in lower case says; None if it is not of the grammar."""
    match = _pattern(kind).fullmatch(clause)
    if match is None:
        return None
    part = match.groupdict()
    if part["adjective"]:
        valence = _bounded(ADJECTIVES[part["adjective"]] * ADVERBS.get(part["adverb"] or part["soft"], 1.0))
        valence = NEGATION * valence if part["not"] else valence
        return _Clause(valence, frozenset({part["aspect"] or part["it"], part["adjective"]}))
    if part["verb"]:
        return _Clause(NEGATION * VERBS[part["verb"]], frozenset({part["unloved"], part["verb"]}))
    if part["past"]:
        verb = PASTS[part["past"]]
        valence = _bounded(VERBS[verb] * (ADVERBS["really"] if part["really"] else 1.0))
        return _Clause(valence, frozenset({part["object"], verb}))
    if part["resolve"]:
        return _Clause(RESOLVES[part["resolve"]], frozenset({part["deed"]}))
    return _Clause(0.0, frozenset({part["tried"] or part["chose"]}))


@cache
def _pattern(kind: Kind) -> re.Pattern[str]:
    """Every clause about a kind of thing, in lower case."""
    aspect = "|".join(kind.aspects)

    def one_of(name: str, words: Iterable[str]) -> str:
        return f"(?P<{name}>{'|'.join(words)})"

    opinion = f"(?:(?P<not>not) (?:{one_of('soft', SOFT)} )?|(?:{one_of('adverb', ADVERBS)} )?)"
    forms = (
        f"(?:the (?P<aspect>{aspect})|(?P<it>it)) (?:{'|'.join(LOOKS)}) {opinion}{one_of('adjective', ADJECTIVES)}",
        f"i did not {one_of('verb', VERBS)} the (?P<unloved>{aspect})",
        f"i (?P<really>really )?{one_of('past', PASTS)} the (?P<object>{aspect})",
        f"i {one_of('resolve', RESOLVES)} (?P<deed>recommend it|(?:{'|'.join(kind.again)}) it again)",
        f"i (?P<tried>tried) it on (?:{'|'.join(DAYS).lower()})",
        f"my (?:{'|'.join(PEOPLE)}) (?P<chose>chose) it",
    )
    return re.compile("|".join(forms))


def _bounded(valence: float) -> float:
    return max(-1.0, min(1.0, valence))
