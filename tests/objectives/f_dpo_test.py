"""f-DPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.ops import divergences
from xpo_jax.testing import toy

# f' as papers print it, of the ratio; constants cancel.
SLOPES = {
  "reverse_kl": lambda t: np.log(t) + 1,
  "forward_kl": lambda t: -1 / t,
  "jensen_shannon": lambda t: np.log(2 * t / (1 + t)),
  "alpha(0.5)": lambda t: (1 - t**-0.5) / 0.5,
}


@pytest.mark.parametrize("name", SLOPES)
def test_oracle(name):
  s = toy.scored(K=2)
  reward = 0.7 * SLOPES[name](np.exp(pairs.log_ratio(s)))
  expected = np.log1p(np.exp(reward[:, 1] - reward[:, 0]))
  out = scored.evaluate(objectives.f_dpo(0.7, name), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=3e-5)


def test_hand_computed_pair():
  # Ratios 2 and 1/2 under the forward KL: 0.5 * (-1/2 + 2) = 0.75.
  s = pairs.one(np.log(2), -np.log(2))
  out = scored.evaluate(objectives.f_dpo(0.5, divergences.FORWARD_KL), s)
  assert out.loss == pytest.approx(np.log(1 + np.exp(-0.75)))


def test_reverse_kl_is_dpo():
  s = toy.scored(K=2)
  general = scored.evaluate(objectives.f_dpo(0.3, divergences.REVERSE_KL), s)
  plain = scored.evaluate(objectives.dpo(0.3), s)
  np.testing.assert_allclose(general.per_example_B, plain.per_example_B, rtol=1e-6)


@pytest.mark.parametrize(
  "divergence",
  [divergences.TOTAL_VARIATION, "chi_square", divergences.alpha(-0.5)],
  ids=repr,
)
def test_divergence_that_allows_probability_0_is_refused(divergence):
  with pytest.raises(ValueError, match=r"f_dpo: .* has f'\(0\+\) = -.* probability 0"):
    objectives.f_dpo(divergence=divergence)


def test_unknown_divergence_is_refused():
  with pytest.raises(ValueError, match=r"f_dpo: divergence='forward' .* forward_kl"):
    objectives.f_dpo(divergence="forward")


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("gap", [1000.0, -1000.0])
def test_extreme_log_ratios_stay_finite(name, gap):
  def loss(ratio):
    s = scored.from_sequence_logps(ratio[None], [[1, 1]], [[0.0, 0.0]])
    return scored.evaluate(objectives.f_dpo(1.0, name), s).loss

  value, slope = jax.jit(jax.value_and_grad(loss))(jnp.array([gap, -gap]))
  assert np.isfinite(value)
  assert np.all(np.isfinite(slope))
