"""DiscoPOP's losses against the formulas of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests import compiled
from xpo_jax.ops import discopop_losses

discopop_losses = compiled.module(discopop_losses)

M = np.array([-2.0, -0.1, 0.0, 0.3, 4.0])
CORRECT = np.array([True, False, True, False, True])


def blended(weight):
  return weight * np.log1p(np.exp(-M)) + (1 - weight) * np.maximum(0, 1 - M)


def oracles():
  """Each loss in float64 from the paper's appendix."""
  z, logistic, hinge = M / 0.05, np.log1p(np.exp(-M)), np.maximum(0, 1 - M)
  s, var = special.expit(z), special.expit(np.var(z, ddof=1))
  quantile = 0.5 + 0.01 * (special.expit(z.mean()) - 0.5)
  m1 = np.std(z, ddof=1) * special.expit(-z).mean()
  m2 = m1 + 0.05 * (special.expit(z.mean()) - m1)
  return {
    "lrml": (1 - s) * logistic + s * np.exp(-M),
    "dbaql": var * np.log1p(np.exp(-M / 0.9)) + (1 - var) * np.exp(-0.9 * M),
    "aql": blended(special.expit(quantile - z)),
    "aqfl": blended(special.expit(0.1 * np.abs(z - m2))),
    "padll": 0.9 * (1 - 0.5 * (M < 0)) * logistic,
    "cell": 0.5 * np.exp(-M) + 0.5 * logistic,
    "pfl": np.where(CORRECT, logistic / 2, 2 * hinge),
  }


@pytest.mark.parametrize("name", list(oracles()))
def test_oracle(name):
  more = (CORRECT,) if name == "pfl" else ()
  loss = getattr(discopop_losses, name)(jnp.asarray(M, jnp.float32), *more)
  np.testing.assert_allclose(loss, oracles()[name], rtol=2e-5)


@pytest.mark.parametrize("name", list(oracles()))
def test_finite_at_any_margin_and_when_all_are_equal(name):
  more = (np.array([True, False, True]),) if name == "pfl" else ()

  def loss(m):
    return getattr(discopop_losses, name)(m, *more).sum()

  for m in ([-1000.0, 0.0, 1000.0], [0.5, 0.5, 0.5]):
    value, slope = jax.value_and_grad(loss)(jnp.array(m))
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_lrml_has_the_local_optima_that_the_paper_reports():
  """Appendix D.6: between them it finds the noisy pairs of its data set.

  The paper's axis is beta times the log-ratios, its numbers are without: 0.05 of them.
  """
  at = 0.05 * jnp.array([-2.3714, 1.44012])
  np.testing.assert_allclose(discopop_losses.lrml(at), [0.785929, 0.87829], rtol=1e-5)
  slope = jax.vmap(jax.grad(discopop_losses.lrml))(at)
  np.testing.assert_allclose(slope, [0, 0], atol=2e-4)
