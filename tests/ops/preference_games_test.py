"""Win probabilities and mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import preference_games

preference_games = compiled.module(preference_games)


def test_win_matrices_are_antisymmetric():
  win = preference_games.from_rewards(jnp.array([[0.0, 1.0, -2.0]]))
  np.testing.assert_allclose(win + win.mT, jnp.ones((1, 3, 3)), rtol=1e-6)
  assert win[0, 1, 0] == pytest.approx(1 / (1 + np.exp(-1.0)))  # 1 beats 0
  raw = jax.random.uniform(jax.random.key(0), (2, 3, 3))
  fair = preference_games.symmetrised(raw)
  np.testing.assert_allclose(fair + fair.mT, jnp.ones((2, 3, 3)), rtol=1e-6)
  np.testing.assert_allclose(preference_games.symmetrised(win), win, atol=1e-7)
  np.testing.assert_allclose(
    preference_games.pair_win_rates(jnp.array([0.7])), [[0.7, 0.3]], rtol=1e-6
  )


def test_win_rate_counts_itself_and_no_absent_completion():
  win = preference_games.from_rewards(jnp.array([[2.0, 0.0, 1.0]]))
  rate = preference_games.win_rate(win, jnp.array([[1.0, 1.0, 0.0]]))
  up = 1 / (1 + np.exp(-2.0))
  np.testing.assert_allclose(rate, [[(0.5 + up) / 2, (1.5 - up) / 2, 0]], rtol=1e-6)
  filler = preference_games.win_rate(win, jnp.zeros((1, 3)))
  np.testing.assert_array_equal(filler, jnp.zeros((1, 3)))


def test_share_is_the_exponent_of_the_reference():
  policy, ref = jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.2, 0.8]]))
  raw = np.array([0.9**0.75 * 0.2**0.25, 0.1**0.75 * 0.8**0.25])
  mixed = preference_games.mixture(policy, ref, 0.25)
  np.testing.assert_allclose(jnp.exp(mixed), [raw / raw.sum()], rtol=1e-6)


@pytest.mark.nonfinite
def test_impossible_tokens_stay_impossible_without_nan():
  policy, ref = jnp.array([[0.0, -jnp.inf]]), jnp.array([[0.0, 1.0]])
  for share in (0.0, 0.5):
    np.testing.assert_array_equal(
      preference_games.mixture(policy, ref, share), [[0, -np.inf]]
    )
  ref_alone = preference_games.mixture(policy, ref, 1.0)
  np.testing.assert_allclose(ref_alone, jax.nn.log_softmax(ref), rtol=1e-6)


def test_bradley_terry_predicts_win_rates_against_the_policy():
  # Rock beats scissors, scissors paper, paper rock: 0.9, 0.7, 0.6.
  win = jnp.array([[0.5, 0.4, 0.9], [0.6, 0.5, 0.3], [0.1, 0.7, 0.5]])
  policy = jnp.array([0.6, 0.3, 0.1])
  fit = jax.jit(preference_games.bradley_terry)
  reward = fit(win, jnp.log(policy))
  predicted = preference_games.from_rewards(reward[None])[0]
  np.testing.assert_allclose(predicted @ policy, win @ policy, atol=1e-5)
  assert float(reward.mean()) == pytest.approx(0, abs=1e-5)
  known = jnp.array([0.7, -0.2, -0.5])  # a game that rewards explain
  fitted = fit(preference_games.from_rewards(known[None])[0], jnp.log(policy))
  np.testing.assert_allclose(fitted, known, atol=1e-4)
