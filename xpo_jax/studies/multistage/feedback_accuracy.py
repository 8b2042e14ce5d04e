"""How well feedback ranks held-out answers: of staged recipes whose judges err."""

from collections.abc import Mapping

import numpy as np

from xpo_jax.data import records
from xpo_jax.evaluation import agreement
from xpo_jax.evaluation.agreement import Questions
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.studies.multistage.staged import Lab


def questions(lab: Lab, seed: int) -> Questions:
  """Pairs of the SFT model's answers to held-out prompts, the truly better one first.

  Args:
    lab: of the recipe.
    seed: of the answers.
  """
  draws = lab.judge(lab.start.params, seed)
  columns = zip(draws.prompts, draws.texts, draws.reward_PK.tolist(), strict=True)
  return agreement.questions(
    [
      records.Ranked(f"prompt {n}", prompt, texts, tuple(rewards))
      for n, (prompt, texts, rewards) in enumerate(columns)
      if len(set(rewards)) > 1
    ]
  )


def accuracy(judges: Mapping[int, Scorer], asked: Mapping[int, Questions]) -> Interval:
  """Share of pairs that each seed's judge orders right, over prompts.

  Args:
    judges: seed -> its judge.
    asked: seed -> its questions.
  """
  p, prompts, better, worse = [], (), (), ()
  for seed, judge in judges.items():
    one = asked[seed]
    p.append(agreement.compare(judge, one))
    prompts, better = prompts + one.prompts, better + one.better
    worse += one.worse
  prompt_N = np.unique(prompts, return_inverse=True)[1]
  whole = Questions(prompts, better, worse, prompt_N)
  return agreement.measure(np.concatenate(p), whole).measures["accuracy"]
