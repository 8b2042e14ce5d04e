"""sDPO: DPO in stages, each with the policy of the stage before as its reference.

Paper: Kim et al. 2024, arXiv:2403.19270: two data sets, first the one on whose pairs
  the first model has the greater accuracy (easier); every stage is plain DPO.
Command: xpo train sdpo [source=FILE policy=DIR --beta 0.3 --num-sources 2]
Hardware: 2 CPU cores, minutes for three seeds.
Expected: more reward at more KL than DPO on all data, more so easy first (paper, Table
  2: 74.3 against 72.7; random parts 72.6). Two stages of one beta restrain less than
  one does: `DPO, beta / stages` is the fair control.
Departs from the paper: sources are made by the margin of the pairs' true reward, large
  margins one source, small ones the other; optimiser state is fresh in each stage,
  which the paper does not state.
Result: sDPO, easy first, true reward {sDPO, easy first | reward} against DPO's {DPO |
  reward}, from {SFT | reward}; three seeds. Not separable: the claim does not reproduce
  here.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from xpo_jax.config.experiment import Experiment, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import ordering
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class Sdpo:
  """Settings.

  Attributes:
    beta: of every stage.
    num_sources: of data, a stage each. Paper: 2.
    task: start, reward and sizes.
  """

  beta: float = 0.3
  num_sources: int = 2
  task: Task = dataclasses.field(default_factory=Task)

  def __post_init__(self):
    if self.num_sources < 2:
      raise ValueError(
        f"Sdpo.num_sources is {self.num_sources}; stages need at least 2"
      )


def experiment(source: str | None = None, policy: str | None = None) -> Sdpo:
  """Two sources of synthetic reviews, or of texts and a policy of your own."""
  return Sdpo(task=Task(source, policy=policy))


def stage(settings: Sdpo, number: int, *, hardest_first: bool, seed: int) -> Experiment:
  """DPO on one source, from the policy of the stage before, which is the reference.

  Args:
    settings: of the study.
    number: of the stage, from 1.
    hardest_first: order of the sources.
    seed: of samples, order and draws.
  """
  pairs = _pairs(settings, number, hardest_first=hardest_first, seed=seed)
  dpo = _dpo(settings, settings.beta, pairs, seed)
  if number == 1:
    return dpo
  before = stage(settings, number - 1, hardest_first=hardest_first, seed=seed)
  return dataclasses.replace(dpo, start=Stage(before))


def at_once(settings: Sdpo, beta: float, seed: int) -> Experiment:
  """DPO on all sources.

  Args:
    settings: of the study.
    beta: of DPO.
    seed: of samples, order and draws.
  """
  pairs = _pairs(settings, None, hardest_first=False, seed=seed)
  return _dpo(settings, beta, pairs, seed)


def variants(settings: Sdpo) -> dict[str, Callable[[int], Experiment]]:
  """Label of an arm -> seed -> its last run."""
  last = settings.num_sources

  def in_stages(hardest_first: bool):
    return lambda seed: stage(settings, last, hardest_first=hardest_first, seed=seed)

  return {
    "sDPO, easy first": in_stages(False),
    "sDPO, hard first": in_stages(True),
    "DPO": lambda seed: at_once(settings, settings.beta, seed),
    "DPO, beta / stages": lambda seed: at_once(settings, settings.beta / last, seed),
  }


def arms(settings: Sdpo) -> dict[str, Experiment]:
  """The last run of every arm, by label and seed."""
  return {
    f"{label}, seed {seed}": make(seed)
    for label, make in variants(settings).items()
    for seed in settings.task.seeds
  }


def run(settings: Sdpo, run_dir: Path) -> int:
  """Trains in stages and at once, judges."""
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms

  study = study_arms.open_study(settings, run_dir)
  accuracies = _accuracies(settings, study_arms.start_directory(study))
  rows = [study_arms.start_row(study, **accuracies)]
  for label, make in variants(settings).items():
    rows.append(study_arms.row(study, label, study_arms.train_arm(study, make)))
  demo.show(study_arms.finish(study, "sDPO", rows))
  return 0


def _dpo(settings: Sdpo, beta: float, pairs: Configured, seed: int) -> Experiment:
  objective = ObjectiveConfig("dpo", beta=beta)
  return tasks.on_records(objective, settings.task, pairs, seed=seed)


def _pairs(
  settings: Sdpo, number: int | None, *, hardest_first: bool, seed: int
) -> Configured:
  """The pairs of a stage, or of all."""
  task = settings.task
  return tasks.from_start(
    ordering.stage,
    task,
    seed=seed,
    reward=task.reward,
    number=number,
    hardest_first=hardest_first,
    num_sources=settings.num_sources,
  )


def _accuracies(settings: Sdpo, start: Path) -> dict[str, float]:
  """Fraction of each source's pairs that the start ranks correctly, over the seeds."""
  import numpy as np

  task = settings.task
  reward = task.reward.build()
  by_seed = [
    ordering.by_margin(
      str(start),
      tasks.prompts(task),
      reward,
      num_sources=settings.num_sources,
      max_completion_tokens=task.max_completion_tokens,
      num_prompts=task.num_prompts,
      seed=seed,
    ).accuracy
    for seed in task.seeds
  ]
  means = np.mean(by_seed, axis=0)
  return {f"accuracy_{i}": float(mean) for i, mean in enumerate(means, 1)}
