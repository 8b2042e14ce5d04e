"""Policies along online runs on the reward-KL plane, and many runs at once.

A study's directory is a `staged.Lab`'s. Beside its stages lies `points/`, a file a run:
what its policies are worth on held-out prompts. What is measured is not run again.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.evaluation import bootstrap, measure_policy
from xpo_jax.feedback import protocol
from xpo_jax.studies.multistage import staged
from xpo_jax.studies.multistage.staged_world import World
from xpo_jax.train import checkpoint, metrics, run_directory
from xpo_jax.types import Params

POINTS = "points"
SAVED = 20  # iterations between checkpoints that only a resume reads
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Study:
  """Settings of a study that has nothing of its own but a world."""

  world: World = dataclasses.field(default_factory=World)


def study(source: str | None = None) -> Study:
  """On the embedded world, or on texts of one's own (as `Data.path`)."""
  return Study(World(source))


class Point(NamedTuple):
  """A policy on the held-out prompts.

  Attributes:
    label: its arm.
    seed: of its run.
    iteration: of its run; of an offline run, steps.
    seconds: its run took until then, compilation included, judging not.
    reward_P, kl_P, length_P: true reward, KL to the start in nats, and tokens of each
      prompt's completions.
    more: name -> what else was asked about the samples, one number a prompt.
  """

  label: str
  seed: int
  iteration: int
  seconds: float
  reward_P: np.ndarray
  kl_P: np.ndarray
  length_P: np.ndarray
  more: Mapping[str, np.ndarray]

  def column(self, name: str) -> np.ndarray:
    """A number of each prompt: "reward", "kl", "length", or a name of `more`."""
    own = {"reward": self.reward_P, "kl": self.kl_P, "length": self.length_P}
    return (own | dict(self.more))[name]


def point(
  lab: staged.Lab,
  label: str,
  seed: int,
  params: Params,
  iteration: int = 0,
  seconds: float = 0.0,
  ask: Mapping[str, protocol.Scorer] | None = None,
) -> Point:
  """Judges a policy with the draws of the seed; `ask` scores them too, by name."""
  draws = lab.judge(params, seed)
  columns = (draws.reward_PK, draws.kl_PK, draws.length_PK)
  more = {
    name: protocol.score_groups(scorer, draws.prompts, draws.texts).mean(1)
    for name, scorer in (ask or {}).items()
  }
  return Point(
    label, seed, iteration, seconds, *map(measure_policy.per_prompt, columns), more
  )


def online(
  lab: staged.Lab,
  label: str,
  experiment: Experiment,
  seed: int,
  every: int | None = None,
  ask: Mapping[str, protocol.Scorer] | None = None,
) -> list[Point]:
  """Runs an online experiment from the study's start, and judges its policies.

  Args:
    lab: the study's.
    label: of the arm; with the seed, the name of its stage.
    experiment: what to run; start, prompts and held-out prompts are the study's.
    seed: of samples, draws and judging.
    every: iterations from one judged policy to the next, from the start on; None: the
      last alone.
    ask: see `point`.

  Returns:
    The points in order, read where they are there already.
  """
  last = experiment.iterations
  loop = Loop(log_every=last, eval_every=last, checkpoint_every=SAVED)
  if every is not None:
    kept = {"checkpoint_every": every, "keep": math.ceil(last / every)}
    loop = dataclasses.replace(loop, **kept)
  theirs = {"objective", "start", "prompts", "evaluation", "seed", "loop"}
  changes = {k: x for k, x in vars(experiment).items() if k not in theirs}

  def run() -> Iterator[Point]:
    name = f"{label}-{seed}"
    held = lab.online(name, experiment.objective, seed=seed, loop=loop, **changes)
    along = [(last, held.params)]
    if every is not None:
      saved = checkpoint.policies(lab.run_dir / name / run_directory.CHECKPOINTS)
      along = [(0, lab.start.params), *saved]
    for iteration, params in along:
      seconds = _seconds(lab.run_dir / name, iteration)
      yield point(lab, label, seed, params, iteration, seconds, ask)

  return _kept(lab, label, seed, run)


def other(
  lab: staged.Lab,
  label: str,
  seed: int,
  stages: Callable[[], Iterable[tuple[int, Params]]],
  ask: Mapping[str, protocol.Scorer] | None = None,
) -> list[Point]:
  """Judges policies that are not of an online run.

  Args:
    lab: the study's.
    label: of the arm.
    seed: of judging.
    stages: makes `(number, params)` of each, the number in place of the iteration.
    ask: see `point`.
  """

  def run() -> Iterator[Point]:
    began = time.perf_counter()
    for number, params in stages():
      spent = time.perf_counter() - began
      yield point(lab, label, seed, params, number, spent, ask)
      began = time.perf_counter()

  return _kept(lab, label, seed, run)


def done(run_dir: Path, label: str, seed: int) -> bool:
  """Whether an arm's points of a seed are there."""
  return (run_dir / POINTS / f"{label}-{seed}.json").exists()


def read(run_dir: Path) -> list[Point]:
  """Every point that a study's directory holds."""
  files = sorted((run_dir / POINTS).glob("*.json"))
  return [one for file in files for one in _read(file)]


def read_to_show(run_dir: Path) -> list[Point]:
  """As `read`, where nothing will be run.

  Raises:
    ValueError: there is nothing to show.
  """
  found = read(run_dir)
  if not found:
    raise ValueError(f"{run_dir} holds nothing to show; run it without --show first")
  return found


def by_arm(points: Sequence[Point]) -> dict[str, dict[int, list[Point]]]:
  """Label -> seed -> points in order of their iterations."""
  found: dict[str, dict[int, list[Point]]] = {}
  for one in sorted(points, key=lambda p: (p.seed, p.iteration)):
    found.setdefault(one.label, {}).setdefault(one.seed, []).append(one)
  return found


def mean(points: Sequence[Point], column: str) -> bootstrap.Interval:
  """Mean of a column over prompts and the points' seeds, one point a seed."""
  return bootstrap.bootstrap_seeds(np.stack([p.column(column) for p in points]))


def gap(
  points: Sequence[Point], others: Sequence[Point], column: str
) -> bootstrap.Interval | None:
  """Mean difference of a column over the seeds that both have; None without any."""
  theirs = {p.seed: p.column(column) for p in others}
  both = [(p.column(column), theirs[p.seed]) for p in points if p.seed in theirs]
  if not both:
    return None
  a_SP, b_SP = map(np.stack, zip(*both, strict=True))
  return bootstrap.paired_bootstrap(a_SP, b_SP)


def parser(doc: str, run_dir: str) -> argparse.ArgumentParser:
  """What the command line of every study takes.

  Args:
    doc: the script's docstring, whose first line describes it.
    run_dir: the default.
  """
  made = argparse.ArgumentParser(description=doc.partition("\n")[0])
  made.add_argument("--run-dir", type=Path, default=Path(run_dir))
  made.add_argument("--seeds", type=int, default=3, help="of every arm")
  made.add_argument("--jobs", type=int, default=2, help="processes at once")
  made.add_argument(
    "--show", action="store_true", help="run nothing, show what is there"
  )
  return made


def report(failed: Mapping[str, str]) -> int:
  """Says which tasks failed; the exit code."""
  for name, error in failed.items():
    print(f"FAILED: {name}: {error}")
  return 1 if failed else 0


def quiet(text: str) -> None:
  """Says nothing."""
  del text


def at_once(
  tasks: Mapping[str, tuple[Any, ...]], jobs: int, say: Say = print
) -> dict[str, str]:
  """Calls functions, in processes of their own where there are several jobs.

  Args:
    tasks: name -> `(function, *arguments)`, all of which can be pickled.
    jobs: how many at once; 1: here, one after the other.
    say: takes a line as each ends.

  Returns:
    Name -> what went wrong, of those that failed: the others go on.
  """
  began, failed = time.perf_counter(), {}

  def ended(name: str, error: BaseException | None) -> None:
    done = "done"
    if error is not None:
      traceback.print_exception(error)
      failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
      done = failed[name]
    say(f"[{time.perf_counter() - began:5.0f} s] {name}: {done}")

  if jobs == 1:
    for name, (function, *given) in tasks.items():
      error = None
      try:
        function(*given)
      except Exception as found:  # one arm's trouble, named in the table
        error = found
      ended(name, error)
    return failed
  # Not forked: JAX's threads would not come along.
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
    futures = {pool.submit(*task): name for name, task in tasks.items()}
    for future in concurrent.futures.as_completed(futures):
      ended(futures[future], future.exception())
  return failed


def _seconds(run_dir: Path, iteration: int) -> float:
  lines = metrics.read(run_dir)[:iteration]
  return sum(line["time/seconds"] for line in lines)


def _kept(
  lab: staged.Lab, label: str, seed: int, run: Callable[[], Iterable[Point]]
) -> list[Point]:
  path = lab.run_dir / POINTS / f"{label}-{seed}.json"
  if done(lab.run_dir, label, seed):
    return _read(path)
  found = list(run())
  lines = [one._asdict() for one in found]
  path.parent.mkdir(exist_ok=True)
  beside = path.with_suffix(".tmp")
  beside.write_text(json.dumps(lines, default=_rounded) + "\n", encoding="utf-8")
  beside.replace(path)
  return found


def _rounded(x_P: np.ndarray) -> list[float]:
  return x_P.astype(np.float64).round(6).tolist()


def _read(path: Path) -> list[Point]:
  def arrays(held: Mapping[str, Any]) -> dict[str, Any]:
    return {n: np.array(x) if isinstance(x, list) else x for n, x in held.items()}

  lines = json.loads(path.read_text(encoding="utf-8"))
  return [Point(**arrays(line | {"more": arrays(line["more"])})) for line in lines]
