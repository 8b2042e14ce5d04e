"""AlphaPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.objectives import _alphapo
from xpo_jax.testing import toy


def test_oracle():
  s = toy.scored(K=2)
  mask = np.asarray(s.mask_BKT, np.float64)
  average = (np.asarray(s.logp_BKT, np.float64) * mask).sum(-1) / mask.sum(-1)
  reward = (1 - np.exp(average) ** -0.5) / 0.5
  z = 2.0 * (reward[:, 0] - reward[:, 1]) - 0.7
  out = scored.evaluate(objectives.alphapo(beta=2.0, gamma=0.7, alpha=0.5), s)
  np.testing.assert_allclose(out.per_example_B, np.log1p(np.exp(-z)), rtol=1e-4)


def test_alpha_0_is_simpo():
  s = toy.scored(K=2)
  expected = scored.evaluate(objectives.simpo(2.0, 0.5), s)
  for alpha in (0.0, 1e-5):
    out = scored.evaluate(objectives.alphapo(2.0, 0.5, alpha), s)
    np.testing.assert_allclose(out.per_example_B, expected.per_example_B, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.25, 0.0, -0.5])
def test_reward_rises_with_the_probability_and_stays_finite(alpha):
  a = jnp.array([-4000.0, -1000.0, -160.0, -3.0, -1e-3, 0.0])
  reward = _alphapo.alpha_reward(a, alpha)
  slope = jax.vmap(jax.grad(_alphapo.alpha_reward), (0, None))(a, alpha)
  assert np.isfinite(reward).all() and np.isfinite(slope).all()
  assert (np.diff(reward) >= 0).all()
  assert (np.asarray(slope) >= 0).all()
  assert reward[-1] == 0


@pytest.mark.parametrize("hparams", [{"beta": 0.0}, {"gamma": -1.0}])
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"alphapo: .* must be"):
    objectives.alphapo(**hparams)
