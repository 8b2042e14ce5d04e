"""Calls independent functions, several at once in processes of their own."""

import concurrent.futures
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

Say = Callable[[str], None]


def call_all(
  tasks: Mapping[str, tuple[Any, ...]], jobs: int, say: Say = print
) -> dict[str, str]:
  """Calls functions; one that fails does not stop the others.

  Args:
    tasks: name -> `(function, *arguments)`, all of which can be pickled.
    jobs: processes at once; 1: this process, one call after the other.
    say: takes a line as each call ends.

  Returns:
    Name -> error, of those that failed.

  Raises:
    KeyboardInterrupt: one was stopped by a signal; with several jobs the others ended.
  """
  began, failed = time.perf_counter(), {}
  stopped: BaseException | None = None

  def ended(name: str, error: BaseException | None) -> None:
    outcome = "done"
    if error is not None:
      traceback.print_exception(error)
      outcome = f"{type(error).__name__}: {error}".partition("\n")[0]
      failed[name] = outcome
    say(f"[{time.perf_counter() - began:5.0f} s] {name}: {outcome}")

  if jobs == 1:
    for name, (function, *arguments) in tasks.items():
      error = None
      try:
        function(*arguments)
      # Whatever is wrong with one call, the others go on and its error is shown.
      except Exception as raised:
        error = raised
      ended(name, error)
    return failed
  # Not forked: a fork has none of JAX's threads.
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
    futures = {pool.submit(*task): name for name, task in tasks.items()}
    for future in concurrent.futures.as_completed(futures):
      error = future.exception()
      ended(futures[future], error)
      stopped = error if isinstance(error, KeyboardInterrupt) else stopped
  if stopped is not None:
    raise stopped
  return failed


def exit_code(failed: Mapping[str, str]) -> int:
  """Prints which calls failed; 1 where any did."""
  for name, error in failed.items():
    print(f"FAILED: {name}: {error}")
  return 1 if failed else 0
