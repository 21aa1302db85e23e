"""The words of the review grammar, with the valence of each that has one."""

from __future__ import annotations

from dataclasses import dataclass

ADJECTIVES = {
    "superb": 1.0,
    "wonderful": 0.95,
    "excellent": 0.9,
    "great": 0.75,
    "lovely": 0.7,
    "good": 0.5,
    "pleasant": 0.45,
    "nice": 0.4,
    "decent": 0.25,
    "plain": 0.0,
    "ordinary": 0.0,
    "average": 0.0,
    "typical": 0.0,
    "dull": -0.25,
    "weak": -0.4,
    "poor": -0.45,
    "bad": -0.5,
    "disappointing": -0.7,
    "awful": -0.75,
    "terrible": -0.9,
    "horrible": -0.95,
    "dreadful": -1.0,
}
ADVERBS = {"slightly": 0.5, "fairly": 0.75, "quite": 0.9, "really": 1.2, "very": 1.3, "extremely": 1.5}
VERBS = {
    "love": 1.0,
    "enjoy": 0.7,
    "like": 0.5,
    "notice": 0.0,
    "inspect": 0.0,
    "dislike": -0.5,
    "resent": -0.7,
    "hate": -1.0,
}
PASTS = {f"{verb.removesuffix('e')}ed": verb for verb in VERBS}
RESOLVES = {"would gladly": 0.8, "would": 0.6, "would not": -0.6, "would never": -0.8}
LOOKS = ("was", "felt", "seemed")
SOFT = ("quite", "really", "very")  # the adverbs that may follow "not"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PEOPLE = ("sister", "brother", "neighbour", "daughter", "cousin", "uncle")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing that is reviewed."""

    modifiers: tuple[str, ...]
    nouns: tuple[str, ...]
    aspects: tuple[str, ...]
    again: tuple[str, ...]


def _kind(*words: str) -> Kind:
    return Kind(*(tuple(listed.split()) for listed in words))


KINDS = (
    _kind(
        "spicy cold grilled smoked sweet garlic lemon ginger mushroom coconut pepper",
        "soup salad curry sandwich pie stew omelette pizza pasta pudding",
        "taste sauce portion texture smell garnish",
        "order",
    ),
    _kind(
        "silent wartime space island winter desert courtroom family detective robot pirate",
        "film thriller comedy drama western romance mystery cartoon musical documentary",
        "plot ending acting music script pace",
        "watch",
    ),
    _kind(
        "electric folding wooden steel travel kitchen garden office solar leather pocket",
        "kettle lamp chair radio clock fan bag drill heater table",
        "design finish handle weight manual switch",
        "buy",
    ),
)
# What a prompt from elsewhere is about is unknown.
ANY = _kind("", "", " ".join(" ".join(kind.aspects) for kind in KINDS), " ".join(kind.again[0] for kind in KINDS))
