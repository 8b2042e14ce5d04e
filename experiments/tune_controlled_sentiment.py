"""Chooses the demo's settings: twelve trials a method, on prompts no table shows.

Every method gets three groups of four runs on the tune split, with pairs of other seeds
than the demo's: three learning rates, or for a method whose strength is its learning
rate three values of another hyperparameter or three ranges. The group that reaches most
of the matched KLs, and among those has most reward there, is the one to write into
`xpo_jax/studies/sentiment/settings.py`.

Command: python experiments/tune_controlled_sentiment.py [FILE of sentences]
Hardware: 2 CPU cores, minutes on synthetic reviews.
Result: after four rounds, each around the last one's choice, the settings of
  `settings.ARMS`.
"""

import dataclasses
import sys
from pathlib import Path

from xpo_jax.studies import demo

RATES = (5e-4, 7e-4, 1e-3)
SEEDS = (100, 101)


def groups():
  """Three groups of settings for every method."""
  from xpo_jax.config.factories import ObjectiveConfig
  from xpo_jax.studies.sentiment.settings import ARMS, Arm

  def named(arm: Arm, text: str, **changes) -> Arm:
    return dataclasses.replace(arm, label=f"{arm.label}: {text}", **changes)

  # Where the learning rate is the strength, another hyperparameter is what varies.
  betas = {"SimPO": ("simpo", (2.0, 5.0, 10.0)), "KTO": ("kto", (0.3, 1.0, 3.0))}
  by_method = {}
  for arm in ARMS:
    if arm.hparam != "learning_rate":
      by_method[arm.label] = [named(arm, f"{x:g}", learning_rate=x) for x in RATES]
    elif arm.label in betas:
      name, values = betas[arm.label]
      by_method[arm.label] = [
        named(arm, f"beta {x:g}", objective=ObjectiveConfig(name, beta=x))
        for x in values
      ]
    else:
      by_method[arm.label] = [
        named(arm, f"x {x:g}", strengths=tuple(s * x for s in arm.strengths))
        for x in (0.5, 1.0, 2.0)
      ]
  return by_method


def main(source: str | None) -> None:
  """Prints every group's reward at the matched KLs, and the best of each method."""
  demo.environment()
  from xpo_jax.evaluation import frontier
  from xpo_jax.studies.sentiment import findings, train_methods
  from xpo_jax.studies.sentiment.settings import SentimentStudy

  every = groups()
  study = SentimentStudy(split="tune", seeds=SEEDS, source=source)
  if source is not None:
    study = dataclasses.replace(study, num_texts=None)
  arms = tuple(arm for trio in every.values() for arm in trio)
  study = dataclasses.replace(study, arms=arms, online=())  # no run directories
  result = train_methods.run(train_methods.prepare(study), Path())
  for method, trio in every.items():
    scores = {}
    for arm in trio:
      runs = findings.points(result, arm.label)
      at = [frontier.reward_at_kl(runs, kl) for kl in findings.MATCHED]
      reached = [x.mean for x in at if x is not None]
      scores[arm.label] = (len(reached), sum(reached) / max(len(reached), 1))
      cells = [f"{x.mean:.3f}" if x else "  -  " for x in at]
      print(f"{arm.label:22}", *cells, findings.span("KL", runs))
    print(f"  {method}: {max(scores, key=scores.get)}")


if __name__ == "__main__":
  main(sys.argv[1] if len(sys.argv) > 1 else None)
