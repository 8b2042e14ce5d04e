"""ListMLE."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import ragged
from xpo_jax import objectives


def evaluate(s, beta=0.5):
  return scored.evaluate(objectives.list_mle(beta), s, (), jax.random.key(0))


def test_without_ties_it_is_plackett_luce():
  s = ragged.several()
  same = scored.evaluate(objectives.plackett_luce(beta=0.5), s).per_example_B
  untied = np.array([0, 1, 3])
  actual = evaluate(s).per_example_B[untied]
  np.testing.assert_allclose(actual, same[untied], rtol=1e-6)


def test_ties_are_broken_either_way():
  """Scores (1, 0): the order drawn costs log(1 + e^-1), or log(1 + e)."""
  n = 64
  one = np.ones((n, 2))
  s = scored.from_sequence_logps(one * [2.0, 0.0], one, 0 * one, reward_BK=one)
  loss_B = np.asarray(evaluate(s).per_example_B)
  cheap, dear = np.log(1 + np.exp(-1)), np.log(1 + np.exp(1))
  is_cheap, is_dear = np.isclose(loss_B, cheap), np.isclose(loss_B, dear)
  assert (is_cheap | is_dear).all()
  assert 16 <= is_cheap.sum() <= 48  # 4 standard deviations


def test_draw_depends_on_the_row():
  s = ragged.several()
  order = np.array([2, 0, 3, 1])
  moved = jax.tree.map(lambda x: np.asarray(x)[order], s)
  expected = evaluate(s).per_example_B[order]
  np.testing.assert_allclose(evaluate(moved).per_example_B, expected, rtol=1e-6)


def test_key_is_required():
  with pytest.raises(ValueError, match="list_mle draws random numbers and key=None"):
    scored.evaluate(objectives.list_mle(), ragged.several(), ())


def test_beta_out_of_range_is_refused():
  with pytest.raises(ValueError, match="list_mle: beta=0"):
    objectives.list_mle(beta=0)
