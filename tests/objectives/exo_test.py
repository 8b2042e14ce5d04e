"""EXO on pairs."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def kl(q, e):
  return q * np.log(q / (1 - e)) + (1 - q) * np.log((1 - q) / e)


def test_hand_computed_pair():
  # q = sigma(0.5 * (3 - 1))
  out = scored.evaluate(objectives.exo(0.5, 0.1), pairs.one(3.0, 1.0))
  assert out.loss == pytest.approx(kl(1 / (1 + np.exp(-1)), 0.1), rel=1e-5)
  assert out.metrics["reward_margin"] == pytest.approx(1.0)


def test_oracle():
  s = toy.scored(K=2)
  q = 1 / (1 + np.exp(-0.7 * pairs.gap(s)))
  out = scored.evaluate(objectives.exo(0.7, 0.2), s)
  np.testing.assert_allclose(out.per_example_B, kl(q, 0.2), rtol=1e-4, atol=1e-6)


def test_loss_and_gradient_vanish_at_the_target():
  def loss(chosen):
    s = scored.from_sequence_logps([[chosen, 0.0]], [[1, 1]], [[0.0, 0.0]])
    return scored.evaluate(objectives.exo(1.0, 0.2), s).loss

  value, slope = jax.jit(jax.value_and_grad(loss))(np.log(0.8 / 0.2))
  np.testing.assert_allclose([value, slope], 0, atol=1e-6)
  assert abs(jax.jit(jax.grad(loss))(-50.0)) < 1e-6  # mode seeking: far off, no pull


@pytest.mark.parametrize("label_smoothing", [0.0, 0.5])
def test_label_smoothing_out_of_range_is_refused(label_smoothing):
  with pytest.raises(ValueError, match=r"exo: label_smoothing=.* > 0 and < 0.5"):
    objectives.exo(label_smoothing=label_smoothing)


def test_divergence_excludes_absent_columns():
  two = objectives.exo_divergence(
    np.array([[1.0, 0.3]]), np.log([[0.6, 0.4]]), np.ones((1, 2))
  )
  three = objectives.exo_divergence(
    np.array([[1.0, 9.0, 0.3]]), np.log([[0.6, 0.5, 0.4]]), np.array([[1.0, 0.0, 1.0]])
  )
  np.testing.assert_allclose(three, two, rtol=1e-6)
