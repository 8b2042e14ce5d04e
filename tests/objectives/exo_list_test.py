"""EXO on lists."""

import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def lists(s, beta, temperature):
  """Reverse KL between two softmaxes over the present completions, list by list."""
  present = np.asarray(s.present_BK) > 0
  reward = np.asarray(s.reward_BK, np.float64)
  for own, r, here in zip(beta * pairs.log_ratio(s), reward, present, strict=True):
    logp = special.log_softmax(own[here])
    yield np.exp(logp) @ (logp - special.log_softmax(r[here] / temperature))


def test_oracle_on_a_ragged_batch():
  s = toy.scored(K=4)
  assert 0 < np.asarray(s.present_BK).mean() < 1
  out = scored.evaluate(objectives.exo_list(0.7, 0.4), s)
  np.testing.assert_allclose(out.per_example_B, list(lists(s, 0.7, 0.4)), rtol=1e-4)


def test_two_completions_are_the_pair_form():
  # The target softmax(r / temperature) of rewards whose gap is log(9): 0.9 and 0.1.
  s = pairs.one(3.0, 1.0).replace(reward_BK=np.array([[np.log(9.0), 0.0]]))
  of_list = scored.evaluate(objectives.exo_list(0.5, 1.0), s)
  of_pair = scored.evaluate(objectives.exo(0.5, label_smoothing=0.1), s)
  assert of_list.loss == pytest.approx(float(of_pair.loss), rel=1e-5)


def test_single_completion_gives_0():
  s = toy.scored(K=3)
  s = s.replace(present_BK=s.present_BK.at[1].set([0, 1, 0]).at[2].set(0))
  out = scored.evaluate(objectives.exo_list(), s)
  np.testing.assert_array_equal(np.asarray(out.per_example_B)[1:3], 0)
  assert np.all(np.isfinite(out.per_example_B))


def test_temperature_is_positive():
  with pytest.raises(ValueError, match=r"exo_list: temperature=0.0 .* > 0"):
    objectives.exo_list(temperature=0.0)
