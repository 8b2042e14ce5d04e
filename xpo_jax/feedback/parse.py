"""Parses verdicts from a judge's text, strictly."""

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
  """Returns the index of the option that a text chooses; None if it is ambiguous.

  Accepts "Preferred answer: 1" and variants (the last one counts), else a text that
  consists of the option alone ("1.", "Answer 2").

  Args:
    text: the judge's output.
    options: the names of the options.

  Example:
    >>> choice("Answer 1 is long. **Preferred answer:** 2", ("1", "2"))
    1
    >>> choice("Both 1 and 2 are good.", ("1", "2"))
  """
  names = "|".join(re.escape(option) for option in options)
  # Ignore case only at the end of a line: "is a matter of taste" does not choose A.
  names = rf"(?-i:{names})|(?:{names})(?=\W*(?:\n|$))"
  choices = re.findall(
    rf"\bpreferred\s+(?:answer|response)\b[^\w\n]*(?:is\b[^\w\n]*)?"
    rf"(?:answer\b[^\w\n]*)?({names})\b"
    r"(?!\s*(?:or|and|/)\s*\w)",
    text,
    re.IGNORECASE,
  )
  if not choices:
    alone = re.fullmatch(rf"\W*(?:answer\s+)?({names})\W*", text, re.IGNORECASE)
    choices = [alone[1]] if alone else []
  lowered = [option.lower() for option in options]
  return lowered.index(choices[-1].lower()) if choices else None


def score(text: str, least: float, most: float) -> float | None:
  """Returns the last "Score: n" of a text, or the number that is the whole text.

  None where there is none, where it is outside [least, most], where it is a range
  ("3-4", "3 or 4"), or where its total is another ("4/10" where most is 5).

  Example:
    >>> score("Score: 1 for relevance. Score: 4/5", 0, 5)
    4.0
    >>> score("Score: 8", 0, 5)
  """
  scores = list(_SCORE.finditer(text))
  last = scores[-1] if scores else _ALONE.fullmatch(text)
  if last is None:
    return None
  number = float(last[1])
  total = last[2]
  if not least <= number <= most or (total is not None and float(total) != most):
    return None
  return number
