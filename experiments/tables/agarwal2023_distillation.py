"""Distillation on synthetic reviews: whose completions, which divergence.

Paper: Agarwal et al. 2023 (GKD), arXiv:2306.13649: on a student's own completions
  (lambda = 1) distillation does better than on fixed ones, whichever the divergence;
  Gu et al. 2023 (MiniLLM), arXiv:2306.08543: policy gradient of the reverse KL.
Command: xpo train agarwal2023_distillation [source=FILE policy=DIR teacher=DIR]
Hardware: 2 CPU cores, minutes a student.
Expected: every student comes nearer to its teacher than its start is, in both KLs; the
  forward KL has the least KL from the teacher, the reverse KL the least KL to it; on
  the student's own completions (paper) more so than on the teacher's.
Departs from the paper: the teacher is GRPO of a larger model; students take as many
  steps each, on about as many completions.
Result: KL to the teacher from {start | to_teacher | 2} nats to {student's completions,
  reverse KL | to_teacher | 2} (reverse KL, own completions), {teacher's completions,
  reverse KL | to_teacher | 2} (teacher's completions), {on-policy distillation |
  to_teacher | 2} (on-policy distillation), {MiniLLM | to_teacher | 2} (MiniLLM); KL
  from it from {start | from_teacher | 2} to {student's completions, forward KL |
  from_teacher | 2} (forward KL, own), {teacher's completions, forward KL | from_teacher
  | 2} (teacher's); three seeds. Whose completions: not separable.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import AuxLossConfig, Experiment, Pretrained, Stage
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import distillation
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class Distillation:
  """Settings.

  Attributes:
    directory: of the teacher; None: trained, see `distillation.teacher`.
    interpolations: of the divergence, an arm each on the student's and on the
      teacher's completions: 0 forward KL, 1 reverse KL.
    mixed: fraction of the student's completions in an arm that has both, with the
      middle interpolation.
    updates: optimiser steps of every student.
    task: start, reward and sizes.
  """

  directory: str | None = None
  interpolations: tuple[float, ...] = (0.0, 0.5, 1.0)
  mixed: float = 0.5
  updates: int = distillation.UPDATES
  task: Task = dataclasses.field(default_factory=Task)

  def __post_init__(self):
    if not 0 < self.mixed < 1:
      raise ValueError(f"Distillation.mixed is {self.mixed}; allowed: 0 < mixed < 1")
    if not self.interpolations:
      raise ValueError("Distillation.interpolations is empty; give one at least")

  @property
  def teacher(self) -> Pretrained | Stage:
    """The teacher of every arm."""
    return distillation.teacher(self.task, self.directory)


def experiment(
  source: str | None = None, policy: str | None = None, teacher: str | None = None
) -> Distillation:
  """On synthetic reviews, or on texts, a policy and a teacher of your own."""
  return Distillation(teacher, task=Task(source, policy=policy))


def student(
  settings: Distillation, name: str, seed: int, *, teacher_share: float = 0.0, **hparams
) -> Experiment:
  """A student on its own completions."""
  return distillation.on_samples_of_student(
    ObjectiveConfig(name, **hparams),
    settings.task,
    settings.teacher,
    teacher_share=teacher_share,
    updates=settings.updates,
    seed=seed,
    evaluation=Evaluation(),  # the study measures it
  )


def given(settings: Distillation, interpolation: float, seed: int) -> Experiment:
  """A student on the teacher's completions."""
  return distillation.on_samples_of_teacher(
    ObjectiveConfig("kd", interpolation=interpolation),
    settings.task,
    settings.teacher,
    updates=settings.updates,
    seed=seed,
  )


def both(settings: Distillation, seed: int) -> Experiment:
  """A student on its own and the teacher's completions."""
  middle = settings.interpolations[len(settings.interpolations) // 2]
  run = student(settings, "gkd", seed, interpolation=middle)
  weight = (1 - settings.mixed) / settings.mixed
  data = distillation.teacher_samples(
    settings.task, settings.teacher, updates=settings.updates, seed=seed
  )
  kd = AuxLossConfig(weight, ObjectiveConfig("kd", interpolation=middle), data, "given")
  return dataclasses.replace(run, aux_losses=(kd,))


def variants(settings: Distillation) -> dict[str, Callable[[int], Experiment]]:
  """Label of an arm -> seed -> its run."""
  one, arms = functools.partial(student, settings), {}
  for b in settings.interpolations:
    arms[f"teacher's completions, {divergence(b)}"] = functools.partial(
      given, settings, b
    )
  for b in settings.interpolations:
    arms[f"student's completions, {divergence(b)}"] = functools.partial(
      one, "gkd", interpolation=b
    )
  arms[f"both, lambda {settings.mixed:g}"] = functools.partial(both, settings)
  arms["on-policy distillation"] = functools.partial(one, "on_policy_distillation")
  arms["MiniLLM"] = functools.partial(one, "minillm", teacher_share=0.2)
  return arms


def divergence(interpolation: float) -> str:
  """What an interpolation is called."""
  ends = {0.0: "forward KL", 1.0: "reverse KL"}
  return ends.get(interpolation, f"JSD({interpolation:g})")


def arms(settings: Distillation) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return {
    f"{label}, seed {seed}": make(seed)
    for label, make in variants(settings).items()
    for seed in settings.task.seeds
  }


def run(settings: Distillation, run_dir: Path) -> int:
  """Trains every student, measures it against its teacher."""
  from xpo_jax.models import hf_checkpoint
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms

  study = study_arms.open_study(settings, run_dir)
  source = settings.teacher
  directory = (
    study_arms.train(study, source.experiment) / "policy"
    if isinstance(source, Stage)
    else Path(source.directory)
  )
  teacher = hf_checkpoint.load(directory, remat="none")
  begin, seeds = study_arms.start(study), settings.task.seeds
  own = {
    seed: study_arms.judge(study, teacher.params, seed, reference=directory)
    for seed in seeds
  }

  def measured(label: str, trained: study_arms.Trained):
    """A row with the KL to the teacher and the KL from it."""
    students = {seed: begin._replace(params=x) for seed, x in trained.policies.items()}
    scores = {
      "to_teacher": lambda seed, draws: distillation.sequence_kl(
        students[seed], teacher, draws
      ),
      "from_teacher": lambda seed, draws: distillation.sequence_kl(
        teacher, students[seed], own[seed]
      ),
    }
    return study_arms.row(study, label, trained, scores=scores)

  taught = study_arms.Trained(dict.fromkeys(seeds, teacher.params))
  started = study_arms.Trained(dict.fromkeys(seeds, begin.params))
  rows = [
    study_arms.row(study, "teacher", taught, reference=directory),
    measured("start", started),
  ]
  for label, make in variants(settings).items():
    rows.append(measured(label, study_arms.train_arm(study, make)))
  demo.show(study_arms.finish(study, "Distillation", rows))
  return 0
