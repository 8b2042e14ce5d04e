"""Pairs of people and of a ranker."""

import jax
import numpy as np
import pytest

from xpo_jax import objectives
from xpo_jax.studies.exact import sources
from xpo_jax.testing import bandit

RANKING = {"objective": "bradley_terry", "hparams": {}}


def test_ranker_finds_the_reward_over_the_labels_temperature():
  @jax.jit
  def fit():
    task = bandit.make(jax.random.key(0), 16)
    drawn = bandit.draw(task, 6000, jax.random.key(1), temperature=0.5)
    objective = objectives.bradley_terry()
    return task, sources.ranker(objective, task, drawn, jax.random.key(2))

  task, found_XY = fit()
  slope = np.polyfit(np.ravel(task.reward_XY), np.ravel(found_XY), 1)[0]
  assert slope == pytest.approx(1 / 0.5, rel=0.1)
  assert np.corrcoef(np.ravel(task.reward_XY), np.ravel(found_XY))[0, 1] > 0.99


def test_a_ranker_of_many_pairs_orders_better_than_one_person():
  def agreement(source, count=1000):
    found = sources.calibrate(
      0,
      objective="slic",
      hparams={"delta": 1.0, "weight": 0.1},
      source=source,
      ranking=RANKING,
      count=count,
      steps=2,
    )
    return float(found["agreement"][-1])

  assert 0.6 < agreement("direct") < agreement("sample-rank", 4000) - 0.05


def test_candidates_must_make_whole_pairs():
  with pytest.raises(ValueError, match="candidates is 7 and count 200"):
    sources.calibrate(
      0, objective="slic", hparams={}, source="direct", ranking=RANKING, candidates=7
    )
