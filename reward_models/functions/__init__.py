"""Small reward functions in TRL's calling convention: keywords, one list entry per completion, ``None`` for "not mine".

``vader`` needs the extra ``sentiment`` and is imported from :mod:`reward_models.functions.sentiment`.
"""

from reward_models.functions.answers import numeric_answer
from reward_models.functions.lengths import length
from reward_models.functions.patterns import keyword, regex_match
from reward_models.functions.text import text_of

__all__ = ["keyword", "length", "numeric_answer", "regex_match", "text_of"]
