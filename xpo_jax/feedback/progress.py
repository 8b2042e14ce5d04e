"""Reports the progress of a judge's queries."""

import sys
import time
from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""`(done, total)`: queries of one call."""


def say(text: str) -> None:
  """Prints a line to standard error."""
  print(text, file=sys.stderr, flush=True)


def print_every(
  seconds: float,
  name: str,
  *,
  write: Callable[[str], None] = say,
  clock: Callable[[], float] = time.monotonic,
) -> OnProgress:
  """Returns a callback that writes progress as lines, at a bounded rate.

  Args:
    seconds: minimum time between lines.
    name: of the judge.
    write: takes a line; default: standard error.
    clock: returns the time in seconds.
  """
  last = clock()

  def on_progress(done: int, total: int) -> None:
    nonlocal last
    if clock() - last >= seconds:
      last = clock()
      write(f"{name}: {done} of {total} queries done")

  return on_progress
