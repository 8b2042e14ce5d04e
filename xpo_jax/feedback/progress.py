"""How far a judge is with what it was asked."""

import sys
import time
from collections.abc import Callable

Advance = Callable[[int, int], None]
"""`(done, total)`, questions of a call."""


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def every(
  seconds: float,
  what: str,
  say: Callable[[str], None] = _say,
  clock: Callable[[], float] = time.monotonic,
) -> Advance:
  """Progress as plain lines, at most one in so many seconds.

  Args:
    seconds: between lines.
    what: whose questions they are.
    say: where lines go; standard error if nothing else is said.
    clock: in seconds.
  """
  last = clock()

  def advance(done: int, total: int) -> None:
    nonlocal last
    if clock() - last >= seconds:
      last = clock()
      say(f"{what}: {done} of {total} questions done")

  return advance
