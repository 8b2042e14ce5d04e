"""Self-rewarding: a policy that rates its own samples, and learns from its ratings.

Paper: Yuan et al. 2024, arXiv:2401.10020: M0 pretrained; M1 fine-tuned on seed answers
  and seed ratings; M2 and M3 each one round of DPO (beta 0.1, the model before as
  reference) on the best against the worst of 4 samples, rated by the model itself.
Command: xpo train self_rewarding [source=FILE policy=DIR rater=MODULE:FUNCTION]
  [--rater.error 0.1 --rounds 2]
Hardware: 2 CPU cores, a quarter of an hour for three seeds.
Expected: the policies get better from M1 to M3, and so do they as judges (paper:
  AlpacaEval win rates 9.9, 15.4, 20.4 %; judging 78.7, 80.4, 81.7 % of pairs right).
  The claim itself, that a language model teaches itself to follow instructions and to
  judge, cannot be tested at this size: M1 does not learn to judge. The arm whose judge
  is the rater of the seed data, by default a script, shows the loop without that claim.
Departs from the paper: no new prompts are written; a rating is the mean under the
  probabilities of 1 to 5, where the paper averages three that are written out; M1's
  seed answers are texts of the task, not selected ones.
Result: M3 by the scripted judge, true reward {M3, scripted judge | reward}, by its own
  {M3, own judge | reward}, from M1's {M1 | reward}; three seeds.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import Experiment, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import local, noisy_judge
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import seed_data, seeding
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class SelfRewarding:
  """Settings.

  Attributes:
    rater: makes the `Scorer` of the seed ratings, which is also the judge of the second
      arm; whole points, 0 to levels - 1. A `seed` that it takes is the run's.
    prompt: the prompt file by which the policy rates; see `feedback.judge.rating`.
    levels: of a rating.
    seed_texts: texts that M1 is fine-tuned on.
    seed_ratings: texts of which it learns the rating, before they are balanced.
    epochs: over the seed data.
    rounds: of DPO after M1. Paper: 2.
    beta: of DPO. Paper: 0.1.
    prompts_per_round: what is sampled for.
    completions: of each prompt. Paper: 4.
    temperature: of the samples. Paper: 0.7.
    top_p: of the samples. Paper: 0.9.
    prompts_per_step: of an update; divides `prompts_per_round`. Paper: 16 pairs.
    learning_rate: of DPO.
    task: start, reward and sizes.
  """

  rater: Configured = dataclasses.field(
    default_factory=lambda: Configured(noisy_judge.scorer, error=0.1, levels=4)
  )
  prompt: str = "brief"
  levels: int = 5
  seed_texts: int = 2000
  seed_ratings: int = 4000
  epochs: int = 2
  rounds: int = 2
  beta: float = 0.1
  prompts_per_round: int = 480
  completions: int = 4
  temperature: float = 0.7
  top_p: float = 0.9
  prompts_per_step: int = 16
  learning_rate: float = 3e-4
  task: Task = dataclasses.field(
    default_factory=lambda: Task(row_length=288, sft_rows=3)
  )

  def __post_init__(self):
    if self.prompts_per_round % self.prompts_per_step:
      raise ValueError(
        f"SelfRewarding.prompts_per_step is {self.prompts_per_step}, which does not "
        f"divide prompts_per_round = {self.prompts_per_round}"
      )


def experiment(
  source: str | None = None, policy: str | None = None, rater: str | None = None
) -> SelfRewarding:
  """Two rounds on synthetic reviews with a scripted rater, or on texts, with a policy
  and a rater of your own: "module:function" of a Scorer."""
  task = Task(source, policy=policy, row_length=288, sft_rows=3)
  settings = SelfRewarding(task=task)
  if rater is None:
    return settings
  return dataclasses.replace(settings, rater=Configured(rater))


def own_judge(settings: SelfRewarding, seed: int) -> Configured:
  """The policy of the round."""
  del seed  # nothing is drawn
  return Configured(local.self_rating, prompt=settings.prompt, levels=settings.levels)


def seed_rater(settings: SelfRewarding, seed: int) -> Configured:
  """The rater of the seed data."""
  return seeding.with_seed(settings.rater, seed)


Judge = Callable[[SelfRewarding, int], Configured]
ARMS: dict[str, Judge] = {"own judge": own_judge, "scripted judge": seed_rater}


def m1(settings: SelfRewarding, seed: int) -> Experiment:
  """Supervised fine-tuning on the seed data."""
  task = settings.task
  seeds = Configured(
    seed_data.texts_and_ratings,
    texts=tasks.sft(task).data,
    rater=seed_rater(settings, seed),
    num_texts=settings.seed_texts,
    num_ratings=settings.seed_ratings,
    prompt=settings.prompt,
    levels=settings.levels,
  )
  return tasks.on_records(
    ObjectiveConfig("sft"), task, seeds, seed=seed, epochs=settings.epochs
  )


def dpo_round(
  settings: SelfRewarding, judge: Judge, number: int, seed: int
) -> Experiment:
  """M2 and so on: DPO on samples of the model before, its reference, that are judged.

  Args:
    settings: of the study.
    judge: of `ARMS`.
    number: of the round, from 1; what it starts from is a stage.
    seed: of samples and order.
  """
  before = (
    m1(settings, seed) if number == 1 else dpo_round(settings, judge, number - 1, seed)
  )
  return tasks.on_rollouts(
    ObjectiveConfig("dpo", beta=settings.beta),
    settings.task,
    start=Stage(before),
    feedback=Feedback(judge(settings, seed)),
    sampling=Sampling(
      settings.completions,
      settings.task.max_completion_tokens,
      temperature=settings.temperature,
      top_p=settings.top_p,
    ),
    iterations=1,
    prompts_per_iteration=settings.prompts_per_round,
    minibatches=settings.prompts_per_round // settings.prompts_per_step,
    optimizer=Optimizer(
      learning_rate=settings.learning_rate, warmup_steps=3, floor=0.1
    ),
    evaluation=Evaluation(),
    seed=seed,
  )


def variants(settings: SelfRewarding) -> dict[str, Callable[[int], Experiment]]:
  """Label of an arm -> seed -> its experiment."""
  return {"M1": functools.partial(m1, settings)} | {
    f"M{number + 1}, {label}": functools.partial(dpo_round, settings, judge, number)
    for label, judge in ARMS.items()
    for number in range(1, settings.rounds + 1)
  }


def arms(settings: SelfRewarding) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return {
    f"{label}, seed {seed}": make(seed)
    for label, make in variants(settings).items()
    for seed in settings.task.seeds
  }


def run(settings: SelfRewarding, run_dir: Path) -> int:
  """Trains M1 and the rounds of two judges, judges each as a writer and as a judge."""
  from xpo_jax.models import transformer
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms
  from xpo_jax.studies.multistage import feedback_accuracy
  from xpo_jax.studies.multistage.arms import Trained

  study, seeds = study_arms.open_study(settings, run_dir), settings.task.seeds
  questions = {seed: feedback_accuracy.questions(study, seed) for seed in seeds}
  start = study_arms.start(study)
  model = transformer.model(start.config)
  as_judge = own_judge(settings, 0).build().make

  def row(label: str, trained: Trained):
    scorers = {
      seed: as_judge(model, params["lm"], start.tokenizer)
      for seed, params in trained.policies.items()
    }
    judging = feedback_accuracy.accuracy(scorers, questions)
    return study_arms.row(study, label, trained, judging=judging)

  rows = [row("M0", Trained(dict.fromkeys(seeds, start.params)))]
  for label, make in variants(settings).items():
    rows.append(row(label, study_arms.train_arm(study, make)))
  title = "Self-rewarding; judging: held-out pairs that the policy orders correctly"
  demo.show(study_arms.finish(study, title, rows))
  return 0
