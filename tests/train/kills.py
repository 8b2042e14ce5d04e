"""Kills a run on rollouts at random moments, resumes it, and compares it with one that
was not killed: bit for bit, and no feedback that was written is asked for again.

    python -m tests.train.kills --kills 20 --seed 0

Every start and every resumption is a process, killed by SIGKILL from within: some
milliseconds after a call of the loop, both drawn from the seed.
"""

import argparse
import functools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import ONLINE
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.data import sealed_files
from xpo_jax.train import (
  checkpoint,
  loop,
  metrics,
  progress,
  references,
  rewards,
  rollouts,
)

RUN = experiments.replace(
  ONLINE,
  iterations=24,
  dynamic_sampling=2,
  loop=Loop(log_every=1, eval_every=3),
  evaluation=Evaluation(share=0.2),
)
# Where a process may be killed: a call of the loop, and its calls in an iteration.
PLACES = {
  "rollout": (rollouts, "draw", 1),
  "feedback": (rewards, "ask", 1),
  "writing rollouts": (rollouts, "write", 1),
  "update": (references, "fill", 4),
  "metrics": (metrics, "write", 1),
  "checkpoint": (checkpoint, "save", 1),
  "sealing": (sealed_files, "seal", 1),
}
_LONGEST = 0.03  # seconds from the call to the kill: about as long as a call takes


class Kill(NamedTuple):
  """When a process is killed.

  Attributes:
    place: of `PLACES`.
    call: which of its calls in that process, from 1.
    seconds: from that call on.
  """

  place: str
  call: int
  seconds: float


def draw(count: int, seed: int) -> list[Kill]:
  """Random kills, the places in turn, within an iteration and a half of a start."""
  rng, places = random.Random(seed), list(PLACES)
  kills = []
  for number in range(count):
    if number % len(places) == 0:
      rng.shuffle(places)
    place = places[number % len(places)]
    calls = PLACES[place][2]
    call = rng.randint(1, calls + (calls + 1) // 2)
    kills.append(Kill(place, call, rng.uniform(0, _LONGEST)))
  return kills


def run_until(
  experiment: Experiment, run_dir: Path, log: Path, kill: Kill | None
) -> None:
  """Starts or resumes a run in this process, until it is done or killed.

  Args:
    experiment: the run.
    run_dir: its directory.
    log: what is asked, and what has been written, is added to it line by line.
    kill: when the process is killed; None: never.
  """
  rewards.ask = _logged(rewards.ask, log, lambda judge, drawn, *_: _round(drawn))
  rollouts.write = _logged(
    rollouts.write, log, lambda path, drawn: _round(drawn), after="written"
  )
  if kill is not None:
    module, name, _ = PLACES[kill.place]
    setattr(module, name, _killing(vars(module)[name], kill))
  if run_dir.exists():
    loop.resume(run_dir, say=quiet)
  else:
    loop.train(experiment, run_dir, say=quiet)


def run_both(
  experiment: Experiment,
  directory: Path,
  kills: Sequence[Kill],
  say: progress.Say = progress.say,
) -> list[Kill]:
  """A run that is not killed and one that is, in `whole` and `killed` of a directory.

  Args:
    experiment: the run.
    directory: where both go.
    kills: of the processes of the killed run, in turn; one more runs to the end.
    say: takes a line a kill.

  Returns:
    The kills that came before the run was done.
  """
  # Not forked, not even before JAX has a backend: such children hang.
  spawn = multiprocessing.get_context("spawn")

  def one(name: str, kill: Kill | None) -> int:
    where = directory / name, directory / f"{name}.log"
    process = spawn.Process(target=run_until, args=(experiment, *where, kill))
    process.start()
    process.join()
    return process.exitcode

  if one("whole", None):
    raise ValueError("the run that is not killed failed")
  done = []
  for kill in kills:
    code = one("killed", kill)
    if code not in (0, -signal.SIGKILL):
      raise ValueError(f"{kill}: the run ended with {code}")
    if code:
      done.append(kill)
      say(f"kill {len(done)}: {kill}")
  if one("killed", None):
    raise ValueError("the killed run could not be resumed to its end")
  return done


def asked_twice(directory: Path) -> tuple[list[str], list[str]]:
  """Rounds of sampling asked about again: those whose feedback a kill lost before it
  was written, and those whose feedback had been written: there must be none."""
  lost, again, seen, written = [], [], set(), set()
  for line in (directory / "killed.log").read_text().splitlines():
    what, round_ = line.split()
    if round_.startswith("-1:"):  # held-out samples, of one number
      continue
    if what == "written":
      written.add(round_)
    elif round_ in written:
      again.append(round_)
    elif round_ in seen:
      lost.append(round_)
    seen.add(round_)
  return lost, again


def _round(drawn: rollouts.RolloutBatch) -> str:
  """The iteration and the last prompts of rollouts, which are those of their round."""
  count = RUN.data.prompts_per_iteration
  return f"{drawn.iteration}:" + "-".join(map(str, drawn.row_B[-count:]))


def main(argv: Sequence[str]) -> int:
  """Prints what differs; 1 where anything does."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as name:
    directory = Path(name)
    # The processes share what was compiled.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    done = run_both(RUN, directory, draw(args.kills, args.seed))
    lost, again = asked_twice(directory)
    wrong = compare.differences(directory / "killed", directory / "whole")
    wrong += [f"round {i} asked about twice" for i in again]
    print(
      f"{len(done)} kills in {RUN.data.iterations} iterations; feedback of {len(lost)} "
      f"rounds was lost before it was written; differences: {wrong or 'none'}"
    )
  if len(done) < args.kills:
    print(f"the run was done after {len(done)} of {args.kills} kills")
  return 1 if wrong or len(done) < args.kills else 0


def _killing(real: Callable, kill: Kill) -> Callable:
  """The function, one call of which leads to the kill."""
  calls = []

  @functools.wraps(real)
  def call(*args, **named):
    calls.append(1)
    if len(calls) == kill.call:
      end = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
      threading.Timer(kill.seconds, end).start()
    return real(*args, **named)

  return call


def _logged(real: Callable, log: Path, which: Callable, after: str = "") -> Callable:
  """The function, with a line in the log before it, or after it."""

  @functools.wraps(real)
  def call(*args):
    line = f"{after or 'asked'} {which(*args)}\n"
    if not after:
      _append(log, line)
    returned = real(*args)
    if after:
      _append(log, line)
    return returned

  return call


def _append(log: Path, line: str) -> None:
  with log.open("a", encoding="utf-8") as file:
    file.write(line)


if __name__ == "__main__":
  # Under its own name, so that children find it.
  from tests.train import kills

  sys.exit(kills.main(sys.argv[1:]))
