"""Measures policies along training: reward and KL of an arm's checkpoints.

A study's directory is one of `multistage.arms`: `study.json`, and `stages/` with every
run by digest. Beside them stands `points/`, a file for each judged run: reward, KL and
length of its policies on held-out prompts. What is there is not computed again. A
point depends on its run and its seed alone: arms may be trained in any order, and
several at once.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.config import experiment as experiments
from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import Configured
from xpo_jax.data import sealed_files
from xpo_jax.evaluation import bootstrap, measure_policy
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.feedback import protocol
from xpo_jax.models import hf_checkpoint
from xpo_jax.studies import demo
from xpo_jax.studies import task as tasks
from xpo_jax.studies.frontier import processes
from xpo_jax.studies.multistage import arms
from xpo_jax.studies.multistage.arms import Arms
from xpo_jax.studies.task import Task
from xpo_jax.train import checkpoint, metrics, progress, run_directory, stages
from xpo_jax.types import Params

POINTS = "points"
# Settings of a table that change how it is carried out, not what is computed.
EXECUTION = ("jobs", "show", "only")
ArmPoints = Mapping[str, Mapping[int, Sequence["FrontierPoint"]]]
"""Label -> seed -> points in the order of their strengths."""


class JudgedRun(NamedTuple):
  """A run of an arm, and which of its policies are judged.

  Attributes:
    label: of the arm; several runs of an arm and seed have different strengths.
    seed: of the run, and of the samples that it is judged by.
    experiment: what is trained; None: nothing, the start itself is judged.
    strength: judge the last policy alone, as the point of this strength; None: judge
      the start and every checkpoint that the run keeps, by steps done.
    scorers: name -> `Scorer` whose mean is a further measure of the samples. A `Stage`
      among its arguments is trained first.
  """

  label: str
  seed: int
  experiment: Experiment | None
  strength: float | None = None
  scorers: Mapping[str, Configured] = {}

  @property
  def name(self) -> str:
    """Of its file, and for a person."""
    strength = "" if self.strength is None else f", {self.strength:g}"
    return f"{self.label}{strength}, seed {self.seed}"


class FrontierPoint(NamedTuple):
  """A policy on the held-out prompts.

  Attributes:
    label: its arm.
    seed: of its run.
    strength: steps or iterations done, or `JudgedRun.strength`.
    seconds: of its run's steps until then, compilation included.
    reward_P, kl_P, length_P: true reward, KL to the start in nats, and tokens, means
      over each prompt's completions.
    scores: name -> mean score of each prompt's completions.
  """

  label: str
  seed: int
  strength: float
  seconds: float
  reward_P: np.ndarray
  kl_P: np.ndarray
  length_P: np.ndarray
  scores: Mapping[str, np.ndarray]

  def column(self, name: str) -> np.ndarray:
    """A measure of each prompt: "reward", "kl", "length", or a name of `scores`."""
    own = {"reward": self.reward_P, "kl": self.kl_P, "length": self.length_P}
    return (own | dict(self.scores))[name]


def on_task(experiment: Experiment, task: Task, *, seed: int) -> Experiment:
  """An online recipe's experiment on a task: its start, prompts and held-out prompts.

  Args:
    experiment: on rollouts.
    task: of the study.
    seed: of samples and draws.
  """
  sampling = dataclasses.replace(
    experiment.data.sampling, max_completion_tokens=task.max_completion_tokens
  )
  return experiments.replace(
    experiment,
    start=tasks.start(task),
    prompts=tasks.prompts(task),
    sampling=sampling,
    evaluation=tasks.held_out(task),
    seed=seed,
  )


def with_checkpoints(experiment: Experiment, every: int) -> Experiment:
  """Keeps a checkpoint every so many iterations and after the last; logs and evaluates
  after the last alone."""
  total = experiment.data.iterations
  loop = Loop(
    log_every=total,
    eval_every=total,
    checkpoint_every=every,
    checkpoint_minutes=None,  # every checkpoint is a point
    keep=math.ceil(total / every),
  )
  return dataclasses.replace(experiment, loop=loop)


def open_study(settings: Any, run_dir: Path, say: arms.Say = print) -> Arms:
  """Opens a table's directory, new or of an interrupted study; `arms.open_study`.

  Args:
    settings: the table's dataclass with the fields `task`, `jobs` and `show`.
    run_dir: the directory.
    say: takes a line of progress.

  Raises:
    ValueError: as `arms.open_study`; or points are to be shown and there are none.
  """
  if settings.show and not any((run_dir / POINTS).glob("*.json")):
    raise ValueError(f"{run_dir} has no points to show; run it without --show first")
  defaults = {
    field.name: field.default
    for field in dataclasses.fields(settings)
    if field.name in EXECUTION
  }
  return arms.open_study(dataclasses.replace(settings, **defaults), run_dir, say)


def measure_missing(
  settings: Any, run_dir: Path, runs: Sequence[JudgedRun]
) -> tuple[Arms, dict[str, str]]:
  """Opens a table's study, and trains and judges what is missing unless the points are
  only to be shown.

  Args:
    settings: see `open_study`.
    run_dir: the study's directory.
    runs: what is judged.

  Returns:
    The study; name -> error, of the runs that failed.
  """
  demo.environment()
  study = open_study(settings, run_dir)
  if settings.show:
    return study, {}
  return study, measure_all(study, runs, settings.jobs)


def measure_all(
  study: Arms,
  runs: Sequence[JudgedRun],
  jobs: int,
  others: Mapping[str, tuple[Any, ...]] | None = None,
) -> dict[str, str]:
  """Trains and judges the runs whose points are missing.

  Args:
    study: its directory.
    runs: what is judged.
    jobs: processes at once.
    others: further calls; see `processes.call_all`.

  Returns:
    Name -> error, of the runs that failed.
  """
  missing = [run for run in runs if _read(study, run) is None]
  _train_shared(study, missing)
  planned = {run.name: (_measure, study.task, study.run_dir, run) for run in missing}
  return processes.call_all({**planned, **(others or {})}, jobs)


def measure(study: Arms, run: JudgedRun) -> list[FrontierPoint]:
  """Trains a run, judges its policies, and writes their points; reads what is there."""
  points = _read(study, run)
  if points is not None:
    return points
  for stage in _stages(list(run.scorers.values())):
    arms.train(study, stage)
  scorers = {
    name: stages.replaced(scorer, lambda stage: _policy(study, stage.experiment))
    for name, scorer in run.scorers.items()
  }
  built = {name: scorer.build() for name, scorer in scorers.items()}
  points = [
    point(study, run, params, strength, seconds, built)
    for strength, seconds, params in _policies(study, run)
  ]
  _write(study, run, points)
  return points


def point(
  study: Arms,
  run: JudgedRun,
  params: Params,
  strength: float,
  seconds: float,
  scorers: Mapping[str, protocol.Scorer],
) -> FrontierPoint:
  """Judges a policy by samples with the seed of its run."""
  draws = arms.judge(study, params, run.seed)
  columns = (draws.reward_PK, draws.kl_PK, draws.length_PK)
  scores = {
    name: protocol.score_groups(scorer, draws.prompts, draws.texts).mean(1)
    for name, scorer in scorers.items()
  }
  reward_P, kl_P, length_P = map(measure_policy.per_prompt, columns)
  return FrontierPoint(
    run.label, run.seed, strength, seconds, reward_P, kl_P, length_P, scores
  )


def read(study: Arms, runs: Sequence[JudgedRun]) -> dict[str, Any]:
  """The points that are there, as `ArmPoints`, labels in the order of the runs."""
  found: dict[str, dict[int, list[FrontierPoint]]] = {}
  for run in sorted(runs, key=lambda run: run.seed):
    points = _read(study, run)
    if points is not None:
      found.setdefault(run.label, {}).setdefault(run.seed, []).extend(points)
  order = dict.fromkeys(run.label for run in runs if run.label in found)
  return {
    label: {
      seed: sorted(points, key=lambda p: p.strength)
      for seed, points in found[label].items()
    }
    for label in order
  }


def run_names(runs: Sequence[JudgedRun]) -> dict[str, Experiment]:
  """Name -> experiment of the runs that train, to be checked."""
  return {run.name: run.experiment for run in runs if run.experiment is not None}


def mean(points: Sequence[FrontierPoint], column: str) -> Interval:
  """Mean of a column over prompts and the points' seeds, one point a seed."""
  return bootstrap.bootstrap_seeds(np.stack([p.column(column) for p in points]))


def gap(
  points: Sequence[FrontierPoint], others: Sequence[FrontierPoint], column: str
) -> Interval | None:
  """Mean difference of a column over the seeds that both have; None without any."""
  theirs = {p.seed: p.column(column) for p in others}
  both = [(p.column(column), theirs[p.seed]) for p in points if p.seed in theirs]
  if not both:
    return None
  a_SP, b_SP = map(np.stack, zip(*both, strict=True))
  return bootstrap.paired_bootstrap(a_SP, b_SP)


def _measure(task: Task, run_dir: Path, run: JudgedRun) -> None:
  """`measure`, in a process of its own."""
  measure(Arms(task, run_dir, progress.silent), run)


def _train_shared(study: Arms, runs: Sequence[JudgedRun]) -> None:
  """Trains what several runs ask for, before two processes would train it at once."""
  asking = collections.Counter()
  by_directory: dict[Path, Experiment] = {}
  begin = tasks.start(study.task)
  for run in runs:
    wanted = [*_stages([begin, run.experiment, *run.scorers.values()])]
    if run.experiment is not None:
      wanted.append(run.experiment)
    directories = {stages.directory(one, study.store, {}): one for one in wanted}
    asking.update(directories.keys())
    by_directory |= directories
  for directory, experiment in by_directory.items():
    if asking[directory] > 1:
      arms.train(study, experiment)


def _stages(value: Any) -> Iterator[Experiment]:
  """The experiments of all stages that a value asks for, inner ones first."""
  for _, stage in experiments.stages(value):
    yield from _stages(stage.experiment)
    yield stage.experiment


def _policies(study: Arms, run: JudgedRun) -> Iterator[tuple[float, float, Params]]:
  """Strength, seconds and parameters of the policies that are judged."""
  if run.experiment is None:
    yield 0, 0.0, arms.start(study).params
    return
  run_dir = arms.train(study, run.experiment)
  seconds = [line["time/seconds"] for line in metrics.read(run_dir)]
  if run.strength is not None:
    policy = hf_checkpoint.load(run_directory.policy(run_dir), remat="none")
    yield run.strength, sum(seconds), policy.params
    return
  yield 0, 0.0, arms.start(study).params
  for step, params in checkpoint.policies(run_dir / run_directory.CHECKPOINTS):
    yield step, sum(seconds[:step]), params


def _policy(study: Arms, experiment: Experiment) -> Path:
  """Directory of the policy or reward model that an experiment leaves."""
  directory = stages.directory(experiment, study.store, {})
  return run_directory.exported(directory, experiment)


def _run_name(study: Arms, run: JudgedRun) -> str:
  """Of the directory whose policies are judged, with its digest."""
  experiment = run.experiment
  if experiment is None:
    start = tasks.start(study.task)
    if not isinstance(start, experiments.Stage):
      return str(start.directory)
    experiment = start.experiment
  return stages.directory(experiment, study.store, {}).name


def _path(study: Arms, run: JudgedRun) -> Path:
  return study.run_dir / POINTS / f"{run.name}.json"


def _write(study: Arms, run: JudgedRun, points: Sequence[FrontierPoint]) -> None:
  """Writes the points of a run whole or not at all."""
  path = _path(study, run)
  content = {"run": _run_name(study, run), "points": [p._asdict() for p in points]}
  path.parent.mkdir(exist_ok=True)
  plain = json.loads(json.dumps(content, default=_rounded))
  sealed_files.write_lines(path, [plain])


def _rounded(x_P: np.ndarray) -> list[float]:
  return x_P.astype(np.float64).round(6).tolist()


def _read(study: Arms, run: JudgedRun) -> list[FrontierPoint] | None:
  """The points of a run; None where there are none, or those of another run."""
  path = _path(study, run)
  if not path.exists():
    return None
  (content,) = sealed_files.read_lines(path)
  if content["run"] != _run_name(study, run):
    return None
  return [
    FrontierPoint(**_arrays(line | {"scores": _arrays(line["scores"])}))
    for line in content["points"]
  ]


def _arrays(values: Mapping[str, Any]) -> dict[str, Any]:
  return {n: np.array(x) if isinstance(x, list) else x for n, x in values.items()}
