"""Iterated RLHF: new comparisons from the newest policy, everything trained anew.

Paper: Bai et al. 2022, arXiv:2204.05862 (Anthropic's helpful and harmless assistant):
  comparisons of the best policy's answers join all older ones, reward models and
  policies are trained from scratch, about weekly; comparisons are halved into those of
  a train and of a test reward model, and both scores are read against sqrt(KL).
Command: xpo train iterated_rlhf [--rounds 4 --comparisons 300 --beta 0.1]
Hardware: 2 CPU cores; 14 minutes for three seeds, beside other jobs.
Expected: with as many labels, reward models that have seen the policy's own answers
  lead to more reward than those that have seen the SFT model's only; the train score
  rises with sqrt(KL) about linearly at first, the test score falls behind it.
Departs from the paper: the people are the world's true reward with logistic noise; one
  size of model, no pretraining of the reward model on other preferences.
Last result: 2026-11-22, three seeds, intervals over 128 prompts and seeds. True reward
  (from 0.091), KL in nats, train and test score: round 1 0.408 [0.349, 0.465], 1.01,
  0.81, 0.31; round 2 0.556 [0.502, 0.615], 1.10, 1.05, 0.80; round 3 0.579 [0.550,
  0.606], 0.94, 1.04, 0.88; as many labels at once 0.541 [0.488, 0.585], 0.88, 0.94,
  0.77. Rounds gain with their labels; whether more than as many at once these seeds
  cannot tell. At once, by fifths of the run: sqrt(KL) 0.30, 0.53, 0.62, 0.71, 0.88;
  train 0.14, 0.37, 0.56, 0.71, 0.90; test 0.11, 0.28, 0.45, 0.60, 0.76: the train score
  rises about linearly, the test score falls behind it.
"""

import dataclasses
import time
from pathlib import Path

from xpo_jax.studies.multistage.staged_world import World


@dataclasses.dataclass(frozen=True)
class IteratedRlhf:
  """Settings.

  Attributes:
    rounds: of collecting and training anew; the first samples the SFT model.
    comparisons: of a round, of two answers to a prompt each; half of them for either
      reward model.
    noise: reward that is one logit of the labeller.
    epochs: passes of a reward model over its comparisons.
    beta: of PPO, whose rewards deviate by 1 on the SFT model's samples. Paper: 0.001.
    iterations: of PPO.
    every: iterations between two points of the curve, each a mean over so many.
    world: start and sizes.
  """

  rounds: int = 3
  comparisons: int = 1600
  noise: float = 0.25
  epochs: int = 4
  beta: float = 0.2
  iterations: int = 40
  every: int = 8
  world: World = dataclasses.field(default_factory=lambda: World(asked=4800))

  def __post_init__(self):
    if self.rounds < 1 or self.comparisons < 4:
      raise ValueError(
        f"IteratedRlhf: rounds={self.rounds}, comparisons={self.comparisons}; at least "
        "1 round of 4"
      )
    if not self.noise > 0:
      raise ValueError(f"IteratedRlhf.noise is {self.noise}; it must be > 0")
    if self.rounds * self.comparisons > self.world.asked:
      raise ValueError(
        f"IteratedRlhf: {self.rounds} rounds of {self.comparisons} comparisons take "
        f"more prompts than World.asked, {self.world.asked}"
      )


def experiment() -> IteratedRlhf:
  """Three rounds, beside one of as many comparisons."""
  return IteratedRlhf()


def run(settings: IteratedRlhf, run_dir: Path) -> int:
  """Collects and trains in rounds and at once, judges, draws train against test."""
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import staged

  lab = staged.Lab(settings, run_dir)
  n, rounds = settings.comparisons, settings.rounds
  policies, seconds, models = {}, {}, {}
  for seed in settings.world.seeds:
    began, rows, newest = time.perf_counter(), [], lab.start.params
    for number in range(1, rounds + 1):
      asked = slice((number - 1) * n, number * n)
      rows = rows + _compare(settings, lab, newest, asked, seed)
      label = f"round {number}"
      done = _train(settings, lab, label, rows, seed)
      newest, models[label, seed] = done
      policies.setdefault(label, {})[seed] = newest
      seconds[label] = seconds.get(label, 0.0) + time.perf_counter() - began
    began, label = time.perf_counter(), "at once"
    rows = _compare(settings, lab, lab.start.params, slice(0, n * rounds), seed)
    done = _train(settings, lab, label, rows, seed)
    policies.setdefault(label, {})[seed], models[label, seed] = done
    seconds[label] = seconds.get(label, 0.0) + time.perf_counter() - began
  rows = [lab.row("SFT", dict.fromkeys(settings.world.seeds, lab.start.params))]
  for label, trained in policies.items():
    scores = {
      f"{half} score": _score({seed: models[label, seed][half] for seed in trained})
      for half in ("train", "test")
    }
    rows.append(lab.row(label, trained, seconds[label], scores=scores))
  demo.show(lab.finish("Iterated RLHF", rows))
  demo.show(_curve(settings, lab, models))
  return 0


def _compare(settings: IteratedRlhf, lab, params, asked: slice, seed: int):
  """Two samples of a policy for some prompts, one chosen by a noisy labeller."""
  import numpy as np
  from scipy import special

  from xpo_jax.studies.multistage import stage_samples

  sampled = lab.sample(params, completions=2, seed=seed, asked=asked)
  p_B = special.expit((sampled.reward_BK @ [1, -1]) / settings.noise)
  rng = np.random.default_rng((seed, asked.start, 8))
  return stage_samples.labelled(sampled, p_B, rng)


def _train(settings: IteratedRlhf, lab, label: str, rows, seed: int):
  """From scratch: a reward model on either half of the comparisons, and a policy."""
  from xpo_jax.config.factories import Configured, ObjectiveConfig
  from xpo_jax.config.sampling import Feedback
  from xpo_jax.feedback import reward_model

  name = f"{label.replace(' ', '-')}-{seed}"
  halves = {
    half: str(
      lab.reward(f"{half}-reward-{name}", rows[i::2], seed=seed, epochs=settings.epochs)
    )
    for i, half in enumerate(("train", "test"))
  }
  judge = Configured(reward_model.scorer, directory=halves["train"])
  done = lab.online(
    name,
    ObjectiveConfig("ppo", beta=settings.beta, whiten_reward=False),
    feedback=Feedback(judge, missing_eos=lab.world.missing_eos(1.0)),
    seed=seed,
    iterations=settings.iterations,
    minibatches=2,
  )
  return done.params, halves


def _score(directories):
  """What a reward model of the seed says of samples."""
  from xpo_jax.feedback import protocol, reward_model

  scorers = {seed: reward_model.scorer(path) for seed, path in directories.items()}

  def score(seed, draws):
    return protocol.score_groups(scorers[seed], draws.prompts, draws.texts)

  return score


def _curve(settings: IteratedRlhf, lab, models):
  """Train, test and true reward against sqrt(KL), over the seeds' runs at once."""
  import numpy as np

  from xpo_jax.data import synthetic_reviews
  from xpo_jax.feedback import protocol, reward_model
  from xpo_jax.report import html
  from xpo_jax.train import metrics, online, rollouts

  points = []
  for seed in settings.world.seeds:
    run_dir = lab.run_dir / f"at-once-{seed}"
    test = reward_model.scorer(models["at once", seed]["test"])
    for line in metrics.read(run_dir):
      path = run_dir / online.ROLLOUTS / f"{line['step']:06d}.jsonl"
      drawn = rollouts.read(path)
      whole = [
        p + text
        for p, texts in zip(drawn.prompts, drawn.texts_BK, strict=True)
        for text in texts
      ]
      test_BK = protocol.score_groups(test, drawn.prompts, drawn.texts_BK)
      figures = (
        drawn.reward_BK.mean(),
        test_BK.mean(),
        synthetic_reviews.true_reward(whole).mean(),
      )
      points.append((line["step"], line["rollout/kl"], *figures))
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
