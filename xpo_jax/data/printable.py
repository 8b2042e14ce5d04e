"""Text of data made safe to print: no terminal escapes, no reordering of characters."""

import re

# C0 and C1 controls but tab and line feed; marks that change the direction of a text.
_CONTROLS = re.compile(
  r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
  r"""Replaces control characters by their escapes.

  Example:
    >>> printable("red \x1b[31m\n")
    'red \\x1b[31m\n'
  """
  return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)
