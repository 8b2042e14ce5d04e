"""Verdicts in a judge's words: read strictly, or not at all."""

import re
from collections.abc import Sequence

_NUMBER = r"-?\d+(?:\.\d+)?"
_SCORE = re.compile(
  rf"\bscore\b[^\w\n-]*(?:is|of)?[^\w\n-]*({_NUMBER})(?![\d.]*\s*(?:[-–]|to|or|and)\s*\d)"
  r"(?:\s*(?:/|out of)\s*(\d+))?",
  re.IGNORECASE,
)
_ALONE = re.compile(rf"\W*?({_NUMBER})(?:\s*(?:/|out of)\s*(\d+))?\W*", re.IGNORECASE)


def choice(text: str, options: Sequence[str]) -> int | None:
  """Which option a text settles on; None: it does not say, or not which.

  Read are "Preferred answer: 1" and its like (the last one), else a text that is
  nothing but the option ("1.", "Answer 2").

  Args:
    text: what the judge wrote.
    options: the names it may give.

  Example:
    >>> choice("Answer 1 is long. **Preferred answer:** 2", ("1", "2"))
    1
    >>> choice("Both 1 and 2 are good.", ("1", "2"))
  """
  names = "|".join(re.escape(option) for option in options)
  # In another case only at the end of a line: "is a matter of taste" is not for A.
  names = rf"(?-i:{names})|(?:{names})(?=\W*(?:\n|$))"
  said = re.findall(
    rf"\bpreferred\s+(?:answer|response)\b[^\w\n]*(?:is\b[^\w\n]*)?"
    rf"(?:answer\b[^\w\n]*)?({names})\b"
    r"(?!\s*(?:or|and|/)\s*\w)",
    text,
    re.IGNORECASE,
  )
  if not said:
    alone = re.fullmatch(rf"\W*(?:answer\s+)?({names})\W*", text, re.IGNORECASE)
    said = [alone[1]] if alone else []
  lowered = [option.lower() for option in options]
  return lowered.index(said[-1].lower()) if said else None


def score(text: str, least: float, most: float) -> float | None:
  """The last "Score: n" of a text, or the number that is all of it.

  None where there is none, where it lies outside [least, most], where it is a range
  ("3-4", "3 or 4"), or where it is out of another total ("4/10" where most is 5).

  Example:
    >>> score("Score: 1 for relevance. Score: 4/5", 0, 5)
    4.0
    >>> score("Score: 8", 0, 5)
  """
  found = list(_SCORE.finditer(text))
  last = found[-1] if found else _ALONE.fullmatch(text)
  if last is None:
    return None
  number, total = float(last[1]), last[2]
  if not least <= number <= most or (total is not None and float(total) != most):
    return None
  return number
