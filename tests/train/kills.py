"""Kills an online run at random moments, lets it go on, and holds it to an undisturbed
one: bit for bit, and no verdict that was written is asked for again.

    python -m tests.train.kills --kills 20 --seed 0

Each life is a process of its own, killed by SIGKILL from within: some milliseconds
after a call of the loop, both drawn from the seed.
"""

import argparse
import dataclasses
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

import jax
import numpy as np

from tests.train.tiny_runs import ONLINE
from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import Loop
from xpo_jax.train import (
  checkpoint,
  metrics,
  offline,
  online,
  progress,
  references,
  rewards,
  rollouts,
)

RUN = dataclasses.replace(
  ONLINE,
  iterations=24,
  loop=Loop(log_every=1, eval_every=3),
  evaluation=Evaluation(share=0.2),
)
# Where a life may end: a call of the loop, and how often an iteration makes it.
PLACES = {
  "rollout": (rollouts, "draw", 1),
  "feedback": (rewards, "ask", 1),
  "writing rollouts": (rollouts, "write", 1),
  "update": (references, "fill", 4),
  "metrics": (metrics, "write", 1),
  "checkpoint": (checkpoint, "save", 1),
  "sealing": (checkpoint, "_seal", 1),
}
_LONGEST = 0.03  # seconds from the call to the kill: about as long as a call takes


class Death(NamedTuple):
  """When a life ends.

  Attributes:
    place: of `PLACES`.
    call: which of its calls in that life, from 1.
    seconds: from that call on.
  """

  place: str
  call: int
  seconds: float


def drawn(count: int, seed: int) -> list[Death]:
  """Random deaths, the places in turn, within an iteration and a half of a start."""
  rng, places = random.Random(seed), list(PLACES)
  deaths = []
  for number in range(count):
    if number % len(places) == 0:
      rng.shuffle(places)
    place = places[number % len(places)]
    often = PLACES[place][2]
    call = rng.randint(1, often + (often + 1) // 2)
    deaths.append(Death(place, call, rng.uniform(0, _LONGEST)))
  return deaths


def live(
  experiment: OnlineExperiment, run_dir: Path, log: Path, death: Death | None
) -> None:
  """One life in this process: the run's start or its resumption, until it is done.

  Args:
    experiment: the run.
    run_dir: its directory.
    log: what is asked, and what has been written, is added to it line by line.
    death: what ends it before.
  """
  rewards.ask = _noted(rewards.ask, log, lambda judge, held, *_: held.iteration)
  rollouts.write = _noted(
    rollouts.write, log, lambda path, held: held.iteration, after="written"
  )
  if death is not None:
    module, name, _ = PLACES[death.place]
    setattr(module, name, _deadly(vars(module)[name], death))
  if run_dir.exists():
    online.resume(run_dir, say=_quiet)
  else:
    online.train(experiment, run_dir, say=_quiet)


def lives(
  experiment: OnlineExperiment,
  directory: Path,
  deaths: Sequence[Death],
  say: progress.Say = progress.say,
) -> list[Death]:
  """The undisturbed run and the killed one, in `whole` and `killed` of a directory.

  Args:
    experiment: the run.
    directory: where both go.
    deaths: of the killed one's lives, in turn; one more goes on to the end.
    say: takes a line a kill.

  Returns:
    The deaths that came before the run was done.
  """
  # Not forked, not even before JAX has a backend: such children hang.
  spawn = multiprocessing.get_context("spawn")

  def one(name: str, death: Death | None) -> int:
    where = directory / name, directory / f"{name}.log"
    life = spawn.Process(target=live, args=(experiment, *where, death))
    life.start()
    life.join()
    return life.exitcode

  if one("whole", None):
    raise ValueError("the undisturbed run failed")
  died = []
  for death in deaths:
    code = one("killed", death)
    if code not in (0, -signal.SIGKILL):
      raise ValueError(f"{death}: the run ended with {code}")
    if code:
      died.append(death)
      say(f"kill {len(died)}: {death}")
  if one("killed", None):
    raise ValueError("the killed run did not go on")
  return died


def differences(directory: Path) -> list[str]:
  """What is not the same in `whole` and `killed`, in words; nothing if all is well."""
  whole, killed = directory / "whole", directory / "killed"
  found = []
  pairs = zip(_leaves(whole), _leaves(killed), strict=True)
  if any(a.tobytes() != b.tobytes() for a, b in pairs):
    found.append("parameters or state")
  if _lines(whole) != _lines(killed):
    found.append("metrics")
  for file in sorted(whole.glob("*/*.jsonl")):
    other = killed / file.relative_to(whole)
    if not other.exists() or other.read_bytes() != file.read_bytes():
      found.append(str(file.relative_to(whole)))
  return found


def asked_twice(directory: Path) -> tuple[list[str], list[str]]:
  """Iterations asked about again: those whose answers a kill lost before they were
  written, and those whose answers had been written, of which there must be none."""
  lost, paid, seen, written = [], [], set(), set()
  for line in (directory / "killed.log").read_text().splitlines():
    what, iteration = line.split()
    if iteration == "-1":  # held-out samples, of one number
      continue
    if what == "written":
      written.add(iteration)
    elif iteration in written:
      paid.append(iteration)
    elif iteration in seen:
      lost.append(iteration)
    seen.add(iteration)
  return lost, paid


def main(argv: Sequence[str]) -> int:
  """Prints what was found; 1 where anything differs."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as name:
    directory = Path(name)
    # Lives share what was compiled.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    died = lives(RUN, directory, drawn(args.kills, args.seed))
    lost, paid = asked_twice(directory)
    wrong = differences(directory) + [f"iteration {i} paid twice" for i in paid]
    print(
      f"{len(died)} kills in {RUN.data.iterations} iterations; {len(lost)} answers asked "
      f"for again, lost before they were written; differences: {wrong or 'none'}"
    )
  if len(died) < args.kills:
    print(f"the run was done after {len(died)} of {args.kills} kills")
  return 1 if wrong or len(died) < args.kills else 0


def _deadly(real: Callable, death: Death) -> Callable:
  """The function, whose call number so and so brings the end."""
  calls = []

  @functools.wraps(real)
  def call(*args, **named):
    calls.append(1)
    if len(calls) == death.call:
      end = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
      threading.Timer(death.seconds, end).start()
    return real(*args, **named)

  return call


def _noted(real: Callable, log: Path, which: Callable, after: str = "") -> Callable:
  """The function, with a line in the log before it, or after it."""

  @functools.wraps(real)
  def call(*args):
    line = f"{after or 'asked'} {which(*args)}\n"
    if not after:
      _append(log, line)
    found = real(*args)
    if after:
      _append(log, line)
    return found

  return call


def _append(log: Path, line: str) -> None:
  with log.open("a", encoding="utf-8") as file:
    file.write(line)


def _leaves(run_dir: Path) -> list[np.ndarray]:
  """Everything in a run's last checkpoint, keys included."""
  manager = checkpoint.open_manager(run_dir / offline.CHECKPOINTS, keep=2)
  args = checkpoint.ocp.args
  tree = manager.restore(
    manager.latest_step(), args=args.Composite(state=args.StandardRestore())
  )
  manager.close()
  keys = jax.dtypes.prng_key
  return [
    np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, keys) else x)
    for x in jax.tree.leaves(tree["state"])
  ]


def _lines(run_dir: Path) -> list[dict[str, float]]:
  return [
    {name: x for name, x in line.items() if not name.startswith("time/")}
    for line in metrics.read(run_dir)
  ]


def _quiet(text: str) -> None:
  del text


if __name__ == "__main__":
  # Under its own name, so that children find it.
  from tests.train import kills

  sys.exit(kills.main(sys.argv[1:]))
