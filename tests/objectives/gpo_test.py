"""GPO and its links."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.ops import links
from xpo_jax.testing import toy


@pytest.mark.parametrize("link", links.LINKS.values(), ids=links.LINKS)
def test_loss_is_the_link_of_the_margin(link):
  # Margin 0.5 * (-3 + 1) = -1.
  formula = {
    "logistic": np.log(1 + np.e),
    "hinge": 1 + 1,
    "squared": (-1 - 1) ** 2,
    "exponential": np.e,
    "truncated_quadratic": (1 + 1) ** 2,
    "savage": 1 / (1 + np.exp(-1)) ** 2,
  }
  out = scored.evaluate(objectives.gpo(0.5, link), pairs.one(-3.0, -1.0))
  assert out.loss == pytest.approx(formula[link.name])
  assert out.metrics["reward_margin"] == pytest.approx(-1.0)


def test_logistic_is_dpo():
  s = toy.scored(K=2)
  general = scored.evaluate(objectives.gpo(0.3, links.LOGISTIC), s)
  plain = scored.evaluate(objectives.dpo(0.3), s)
  np.testing.assert_allclose(general.per_example_B, plain.per_example_B, rtol=1e-6)


def test_squared_is_ipo_at_half_beta_times_beta_squared():
  s = toy.scored(K=2)
  general = scored.evaluate(objectives.gpo(0.3, links.SQUARED), s)
  ipo = scored.evaluate(objectives.ipo(0.15), s)
  np.testing.assert_allclose(general.per_example_B, 0.09 * ipo.per_example_B, 1e-5)


def test_oracle():
  s = toy.scored(K=2)
  expected = np.maximum(0, 1 - 0.7 * pairs.gap(s)) ** 2
  out = scored.evaluate(objectives.gpo(0.7), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=2e-5)


@pytest.mark.parametrize("gap", [1000.0, -1000.0])
@pytest.mark.parametrize("name", links.LINKS)
def test_extreme_log_ratios_stay_finite(name, gap):
  def loss(ratio):
    s = scored.from_sequence_logps(ratio[None], [[1, 1]], [[0.0, 0.0]])
    return scored.evaluate(objectives.gpo(1.0, name), s).loss

  value, slope = jax.jit(jax.value_and_grad(loss))(jnp.array([gap, -gap]))
  assert np.isfinite(value)
  assert np.all(np.isfinite(slope))


def test_link_is_taken_by_value_or_name():
  assert objectives.gpo(link="savage").hparams["link"] is links.SAVAGE
  with pytest.raises(ValueError, match=r"gpo: link='hing' .*did you mean 'hinge'"):
    objectives.gpo(link="hing")
  with pytest.raises(ValueError, match=r"gpo: link=None .* give a Link"):
    objectives.gpo(link=None)
