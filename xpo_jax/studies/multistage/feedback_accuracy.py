"""Measures how well feedback ranks held-out completions, for studies of judges."""

from collections.abc import Callable, Mapping

import numpy as np

from xpo_jax.config.experiment import Experiment
from xpo_jax.data import records
from xpo_jax.evaluation import agreement
from xpo_jax.evaluation.agreement import Questions
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.studies.multistage import arms
from xpo_jax.studies.multistage.arms import Arms
from xpo_jax.train import stages


def questions(study: Arms, seed: int) -> Questions:
  """Pairs of the start's completions of held-out prompts, the truly better one first.

  Args:
    study: whose start and prompts.
    seed: of the completions.
  """
  draws = arms.judge(study, arms.start(study).params, seed)
  columns = zip(draws.prompts, draws.texts, draws.reward_PK.tolist(), strict=True)
  return agreement.questions(
    [
      records.Ranked(f"prompt {n}", prompt, texts, tuple(rewards))
      for n, (prompt, texts, rewards) in enumerate(columns)
      if len(set(rewards)) > 1
    ]
  )


def scorers(study: Arms, make: Callable[[int], Experiment]) -> dict[int, Scorer]:
  """The feedback that an arm on rollouts learned from, by seed.

  Args:
    study: where the arm is trained.
    make: seed -> the arm's experiment.
  """
  made = {}
  for seed in study.task.seeds:
    run_dir = arms.train(study, make(seed))
    experiment = stages.resolved(make(seed), run_dir, study.store, {})
    made[seed] = experiment.data.feedback.source.build()
  return made


def accuracy(
  judges: Mapping[int, Scorer], by_seed: Mapping[int, Questions]
) -> Interval:
  """Fraction of pairs that each seed's judge orders correctly, over prompts.

  Args:
    judges: seed -> its judge.
    by_seed: seed -> its questions.
  """
  p, prompts, better, worse = [], (), (), ()
  for seed, judge in judges.items():
    pairs = by_seed[seed]
    p.append(agreement.compare(judge, pairs))
    prompts, better = prompts + pairs.prompts, better + pairs.better
    worse += pairs.worse
  prompt_N = np.unique(prompts, return_inverse=True)[1]
  pooled = Questions(prompts, better, worse, prompt_N)
  return agreement.measure(np.concatenate(p), pooled).measures["accuracy"]
