"""RLAIF: a reward model of soft AI labels, beside clean labels and direct ratings.

Paper: Lee et al. 2023, arXiv:2309.00267: a language model prefers one of two samples,
  asked in both orders; the averaged probabilities train a reward model; REINFORCE.
  Direct RLAIF rates each sample instead, and needs no reward model.
Command: xpo train rlaif [source=FILE policy=DIR judge=MODULE:FUNCTION]
  [--judge.error 0.15 --judge.position 0.2]
Hardware: 2 CPU cores, a quarter of an hour for three seeds.
Expected: asked in both orders, the judge says 1/2 on the pairs that it decides by
  position, so that they are left out, not wrong; distilled RLAIF comes near RLHF
  (paper: preferred in 50 % of summaries, with a judge that agrees with people on 78 %),
  direct RLAIF is not worse than distilled (74 against 71 % over SFT). The default judge
  is a script, so that none of these figures is testable; what is: how much of a judge's
  stated error reaches the policy.
Departs from the paper: the scripted judge knows the truth, is wrong on a stated
  fraction of pairs, and on another prefers what is shown first; pairs of probability
  1/2 are dropped. The baseline of REINFORCE is the mean of past rewards, not a learned
  value. With a sixth of the prompts the reward models rank near chance and the policies
  overoptimise them: num_prompts is 4,800.
Result: distilled RLAIF, true reward {RLAIF, distilled | reward} against RLHF's {RLHF |
  reward}, from {SFT | reward}; three seeds. Direct RLAIF is not above distilled.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from xpo_jax import objectives
from xpo_jax.config.experiment import Experiment, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import noisy_judge, protocol, reward_model
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import ai_labels_data, scaled_ratings, seeding
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class Rlaif:
  """Settings.

  Attributes:
    judge: makes the `feedback.protocol.Preference` that labels pairs, asked in both
      orders; a `seed` that it takes is the run's. The default is a script that knows
      the reward of the synthetic reviews.
    rater: makes the `Scorer` of direct RLAIF; seeded as the judge is.
    temperature: of the samples. Paper: 0.9.
    beta: of REINFORCE, for rewards of deviation 1 on samples of the start.
    epochs: of the reward model.
    iterations: of REINFORCE.
    prompts_per_iteration: a sample of each. Paper: 128.
    task: start, reward and sizes.
  """

  judge: Configured = dataclasses.field(
    default_factory=lambda: Configured(
      noisy_judge.preference, error=0.15, position=0.2, temperature=0.25
    )
  )
  rater: Configured = dataclasses.field(
    default_factory=lambda: Configured(noisy_judge.scorer, error=0.15)
  )
  temperature: float = 0.9
  beta: float = 0.1
  epochs: int = 4
  iterations: int = 40
  prompts_per_iteration: int = 128
  task: Task = dataclasses.field(default_factory=lambda: Task(num_prompts=4800))


def experiment(
  source: str | None = None,
  policy: str | None = None,
  judge: str | None = None,
  rater: str | None = None,
) -> Rlaif:
  """A scripted judge on synthetic reviews, or your own: "module:function" of a
  Preference (of one order, it is asked in both) and of a Scorer."""
  settings = Rlaif(task=Task(source, policy=policy, num_prompts=4800))
  own = {"judge": judge, "rater": rater}
  return dataclasses.replace(
    settings, **{name: Configured(make) for name, make in own.items() if make}
  )


def true_labels(settings: Rlaif, seed: int) -> Configured:
  """Two samples of each prompt, the truly better one chosen."""
  task = settings.task
  return tasks.from_start(
    ai_labels_data.better_of_two,
    task,
    seed=seed,
    reward=task.reward,
    temperature=settings.temperature,
  )


def ai_labels(settings: Rlaif, seed: int) -> Configured:
  """The same pairs with the judge's soft labels, averaged over both orders."""
  judge = seeding.with_seed(settings.judge, seed)
  return Configured(
    ai_labels_data.judged,
    pairs=true_labels(settings, seed),
    judge=Configured(protocol.both_orders, preference=judge),
    seed=seed,
  )


def clean_model(settings: Rlaif, seed: int) -> Experiment:
  """The reward model of true labels."""
  return tasks.on_records(
    ObjectiveConfig("bradley_terry"),
    settings.task,
    true_labels(settings, seed),
    seed=seed,
    epochs=settings.epochs,
  )


def distilled_model(settings: Rlaif, seed: int) -> Experiment:
  """The reward model of the judge's labels."""
  return tasks.on_records(
    ObjectiveConfig(objectives.soft_bradley_terry),
    settings.task,
    ai_labels(settings, seed),
    seed=seed,
    epochs=settings.epochs,
  )


def clean_reward(settings: Rlaif, seed: int) -> Configured:
  """Rewards of RLHF."""
  model = Stage(clean_model(settings, seed))
  return Configured(reward_model.scorer, directory=model)


def distilled_reward(settings: Rlaif, seed: int) -> Configured:
  """Rewards of distilled RLAIF."""
  model = Stage(distilled_model(settings, seed))
  return Configured(reward_model.scorer, directory=model)


def direct_reward(settings: Rlaif, seed: int) -> Configured:
  """Rewards of direct RLAIF, on the reward models' scale."""
  task = settings.task
  return Configured(
    scaled_ratings.unit_deviation,
    rater=seeding.with_seed(settings.rater, seed),
    policy=tasks.start_weights(task),
    prompts=tasks.prompts(task),
    max_completion_tokens=task.max_completion_tokens,
    temperature=settings.temperature,
    seed=seed,
  )


Reward = Callable[[Rlaif, int], Configured]
ARMS: dict[str, Reward] = {
  "RLHF": clean_reward,
  "RLAIF, distilled": distilled_reward,
  "RLAIF, direct": direct_reward,
}


def arm(settings: Rlaif, reward: Reward, seed: int) -> Experiment:
  """REINFORCE with the reward of an arm.

  Args:
    settings: of the study.
    reward: of `ARMS`.
    seed: of labels, samples and draws.
  """
  task = settings.task
  return tasks.on_rollouts(
    ObjectiveConfig("reinforce", beta=settings.beta),
    task,
    feedback=Feedback(reward(settings, seed), missing_eos=task.missing_eos(1.0)),
    sampling=Sampling(1, task.max_completion_tokens, settings.temperature),
    iterations=settings.iterations,
    prompts_per_iteration=settings.prompts_per_iteration,
    seed=seed,
  )


def arms(settings: Rlaif) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return {
    f"{label}, seed {seed}": arm(settings, reward, seed)
    for label, reward in ARMS.items()
    for seed in settings.task.seeds
  }


def run(settings: Rlaif, run_dir: Path) -> int:
  """Trains reward models and policies, judges both."""
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms
  from xpo_jax.studies.multistage import feedback_accuracy

  study, seeds = study_arms.open_study(settings, run_dir), settings.task.seeds
  questions = {seed: feedback_accuracy.questions(study, seed) for seed in seeds}
  rows = [study_arms.start_row(study)]
  for label, reward in ARMS.items():
    make = functools.partial(arm, settings, reward)
    trained = study_arms.train_arm(study, make)
    scorers = feedback_accuracy.scorers(study, make)
    ranks = feedback_accuracy.accuracy(scorers, questions)
    rows.append(study_arms.row(study, label, trained, ranks=ranks))
  accuracies = [
    ai_labels_data.label_accuracy(
      study_arms.trained_records(study, clean_model(settings, seed)),
      study_arms.trained_records(study, distilled_model(settings, seed)),
    )
    for seed in seeds
  ]
  labelled, correct = (sum(x) / len(seeds) for x in zip(*accuracies, strict=True))
  title = (
    f"RLAIF; the judge labels {labelled:.1%} of the pairs, {correct:.1%} of them "
    "correctly; ranks: held-out pairs that the reward orders correctly"
  )
  demo.show(study_arms.finish(study, title, rows))
  return 0
