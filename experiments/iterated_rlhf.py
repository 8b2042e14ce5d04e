"""Iterated RLHF: new comparisons from the newest policy, everything trained anew.

Paper: Bai et al. 2022, arXiv:2204.05862 (Anthropic's helpful and harmless assistant):
  comparisons of the best policy's completions join all older ones, reward models and
  policies are trained from scratch, about weekly; comparisons are halved into those of
  a train and of a test reward model, and both scores are plotted against sqrt(KL).
Command: xpo train iterated_rlhf [source=FILE policy=DIR --rounds 4 --beta 0.1]
Hardware: 2 CPU cores, a quarter of an hour for three seeds.
Expected: with as many labels, reward models trained on the policy's own completions
  lead to more reward than those trained on the SFT model's only; the train score rises
  with sqrt(KL) about linearly at first, the test score less.
Departs from the paper: the labeller is the task's true reward with logistic noise; one
  size of model, no pretraining of the reward model on other preferences.
Result: round 3, true reward {round 3 | reward} against {at once | reward} of as many
  labels at once, from {SFT | reward}; three seeds. Not separable.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from xpo_jax.config.experiment import Experiment, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback
from xpo_jax.feedback import reward_model
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import halves, samples
from xpo_jax.studies.task import Task


def _task(source: str | None = None, policy: str | None = None) -> Task:
  return Task(source, policy=policy, num_prompts=4800)


@dataclasses.dataclass(frozen=True)
class IteratedRlhf:
  """Settings.

  Attributes:
    rounds: of collecting and training anew; the first samples the SFT model.
    comparisons: of a round, of two completions of a prompt each; half of them for
      either reward model.
    noise: reward that is one logit of the labeller.
    epochs: passes of a reward model over its comparisons.
    beta: of PPO, whose rewards have standard deviation 1 on the SFT model's samples.
      Paper: 0.001.
    iterations: of PPO.
    every: iterations between two points of the curve, each a mean over so many.
    task: start, reward and sizes.
  """

  rounds: int = 3
  comparisons: int = 1600
  noise: float = 0.25
  epochs: int = 4
  beta: float = 0.2
  iterations: int = 40
  every: int = 8
  task: Task = dataclasses.field(default_factory=_task)

  def __post_init__(self):
    if self.rounds < 1 or self.comparisons < 4:
      raise ValueError(
        f"IteratedRlhf: rounds={self.rounds}, comparisons={self.comparisons}; at least "
        "1 round of 4"
      )
    if not self.noise > 0:
      raise ValueError(f"IteratedRlhf.noise is {self.noise}; it must be > 0")
    if self.rounds * self.comparisons > self.task.num_prompts:
      raise ValueError(
        f"IteratedRlhf: {self.rounds} rounds of {self.comparisons} comparisons take "
        f"more prompts than Task.num_prompts, {self.task.num_prompts}"
      )


def experiment(source: str | None = None, policy: str | None = None) -> IteratedRlhf:
  """Three rounds, and one of as many comparisons."""
  return IteratedRlhf(task=_task(source, policy))


def collected(settings: IteratedRlhf, number: int, seed: int) -> tuple[Configured, ...]:
  """The comparisons of a round and of all rounds before it.

  Args:
    settings: of the study.
    number: of the round, from 1: its completions are of the policy of the one before.
    seed: of samples and labels.
  """
  size, sources = settings.comparisons, []
  for before in range(number):
    writer = tasks.start_weights(settings.task)
    if before:
      writer = Stage(policy(settings, collected(settings, before, seed), seed))
    sources.append(_compared(settings, writer, seed, before * size, size))
  return tuple(sources)


def at_once(settings: IteratedRlhf, seed: int) -> tuple[Configured, ...]:
  """As many comparisons as all rounds collect, of the start's completions.

  Args:
    settings: of the study.
    seed: of samples and labels.
  """
  writer = tasks.start_weights(settings.task)
  number = settings.rounds * settings.comparisons
  return (_compared(settings, writer, seed, 0, number),)


def reward(
  settings: IteratedRlhf, sources: tuple[Configured, ...], which: str, seed: int
) -> Experiment:
  """A reward model on half of the comparisons.

  Args:
    settings: of the study.
    sources: `collected` or `at_once`.
    which: "first" half, of the train reward model, or "second", of the test one.
    seed: of order and draws.
  """
  return tasks.on_records(
    ObjectiveConfig("bradley_terry"),
    settings.task,
    Configured(halves.half, sources=sources, which=which),
    seed=seed,
    epochs=settings.epochs,
  )


def policy(
  settings: IteratedRlhf, sources: tuple[Configured, ...], seed: int
) -> Experiment:
  """PPO from the start, rewarded by the train reward model of the comparisons.

  Args:
    settings: of the study.
    sources: `collected` or `at_once`.
    seed: of samples, order and draws.
  """
  train = Stage(reward(settings, sources, "first", seed))
  judge = Configured(reward_model.scorer, directory=train)
  return tasks.on_rollouts(
    ObjectiveConfig("ppo", beta=settings.beta, whiten_reward=False),
    settings.task,
    feedback=Feedback(judge, missing_eos=settings.task.missing_eos(1.0)),
    seed=seed,
    iterations=settings.iterations,
    minibatches=2,
  )


def variants(
  settings: IteratedRlhf,
) -> dict[str, Callable[[int], tuple[Configured, ...]]]:
  """Label of an arm -> seed -> its comparisons."""
  rounds = {
    f"round {number}": lambda seed, n=number: collected(settings, n, seed)
    for number in range(1, settings.rounds + 1)
  }
  return rounds | {"at once": lambda seed: at_once(settings, seed)}


def arms(settings: IteratedRlhf) -> dict[str, Experiment]:
  """The policy and the test reward model of every arm, by label and seed."""
  runs = {}
  for label, sources in variants(settings).items():
    for seed in settings.task.seeds:
      runs[f"{label}, seed {seed}"] = policy(settings, sources(seed), seed)
      name = f"{label}, test reward model, seed {seed}"
      runs[name] = reward(settings, sources(seed), "second", seed)
  return runs


def run(settings: IteratedRlhf, run_dir: Path) -> int:
  """Collects and trains in rounds and at once, judges, tables train against test."""
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms

  study = study_arms.open_study(settings, run_dir)
  rows = [study_arms.start_row(study)]
  for label, sources in variants(settings).items():
    trained = study_arms.train_arm(
      study, lambda seed, s=sources: policy(settings, s(seed), seed)
    )
    scores = {
      f"{name} score": _score(settings, study, sources, which)
      for name, which in {"train": "first", "test": "second"}.items()
    }
    rows.append(study_arms.row(study, label, trained, scores=scores))
  demo.show(study_arms.finish(study, "Iterated RLHF", rows))
  demo.show(_curve(settings, study))
  return 0


def _compared(
  settings: IteratedRlhf, writer: str | Stage, seed: int, first: int, number: int
) -> Configured:
  """Comparisons of a policy's completions of some prompts, by the noisy labeller."""
  task = settings.task
  return Configured(
    samples.noisy_pairs,
    policy=writer,
    prompts=tasks.prompts(task),
    reward=task.reward,
    max_completion_tokens=task.max_completion_tokens,
    noise=settings.noise,
    seed=seed,
    first_prompt=first,
    num_prompts=number,
  )


def _score(settings: IteratedRlhf, study, sources, which: str):
  """The reward model of each seed as a measure of samples."""
  from xpo_jax.feedback import protocol

  scorers = {
    seed: _scorer(study, reward(settings, sources(seed), which, seed))
    for seed in settings.task.seeds
  }

  def score(seed, draws):
    return protocol.score_groups(scorers[seed], draws.prompts, draws.texts)

  return score


def _scorer(study, experiment: Experiment):
  """The scorer of a reward model, which is trained where it is missing."""
  from xpo_jax.studies.multistage import arms as study_arms
  from xpo_jax.train import run_directory

  run_dir = study_arms.train(study, experiment)
  return reward_model.scorer(str(run_directory.policy(run_dir)))


def _curve(settings: IteratedRlhf, study):
  """Train, test and true reward against sqrt(KL), over the seeds' runs at once."""
  import numpy as np

  from xpo_jax.feedback import protocol
  from xpo_jax.report import html
  from xpo_jax.studies.multistage import arms as study_arms
  from xpo_jax.train import metrics, rollouts, run_directory

  true_reward, points = settings.task.reward.build(), []
  for seed in settings.task.seeds:
    sources = at_once(settings, seed)
    run_dir = study_arms.train(study, policy(settings, sources, seed))
    test = _scorer(study, reward(settings, sources, "second", seed))
    for line in metrics.read(run_dir):
      path = run_dir / run_directory.ROLLOUTS / f"{line['step']:06d}.jsonl"
      batch = rollouts.read(path)
      others = (
        protocol.score_groups(scorer, batch.prompts, batch.texts_BK).mean()
        for scorer in (test, true_reward)
      )
      points.append((line["step"], line["rollout/kl"], batch.reward_BK.mean(), *others))
  points_N = np.array(points)
  cells = []
  for first in range(1, settings.iterations + 1, settings.every):
    last = min(first + settings.every - 1, settings.iterations)
    within = (points_N[:, 0] >= first) & (points_N[:, 0] <= last)
    _, kl, *figures = points_N[within].mean(0)
    root = np.sqrt(max(kl, 0.0))  # a mean of log-ratios may be negative
    cells.append([f"{first} to {last}", *(f"{x:.2f}" for x in (root, *figures))])
  header = ["iterations", "sqrt(KL)", "train score", "test score", "true reward"]
  caption = "At once: means over the samples of so many iterations, and seeds."
  return html.Table(header, cells, caption)
