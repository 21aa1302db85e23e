"""Small reward functions in TRL's calling convention: keywords, one list entry per completion, ``None`` for "not mine".

Some need an extra and are imported from their modules: ``vader`` from :mod:`reward_models.functions.sentiment`, ``json_schema``
from :mod:`reward_models.functions.structured`, ``math_equal`` from :mod:`reward_models.functions.mathematics`.
"""

from reward_models.functions.answers import numeric_answer
from reward_models.functions.formats import format_tags
from reward_models.functions.lengths import length, soft_overlong
from reward_models.functions.matches import exact_match, fuzzy_match
from reward_models.functions.patterns import keyword, regex_match
from reward_models.functions.repetition import repetition_penalty
from reward_models.functions.text import column_of, text_of

__all__ = [
    "column_of",
    "exact_match",
    "format_tags",
    "fuzzy_match",
    "keyword",
    "length",
    "numeric_answer",
    "regex_match",
    "repetition_penalty",
    "soft_overlong",
    "text_of",
]
