"""The objective's expected update is the exact step of Nash-MD."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.ops import preference_games
from xpo_jax.studies.exact import games

TAU, ETA = 0.3, 0.5


def test_expected_update_is_nash_md():
  found = games.learn(
    0,
    objective="nash_md",
    hparams={"beta": TAU},
    opponent=ETA * TAU,
    iterations=40,
    learning_rate=ETA,
  )
  win_VV, ref_V = games.game(0)
  logp_V = jnp.asarray(ref_V)
  for _ in range(40):
    logp_V = preference_games.nash_md_step(logp_V, ref_V, win_VV, TAU, ETA)
  expected = preference_games.exploitability(win_VV, logp_V)
  assert found["exploitability"] == pytest.approx(float(expected), abs=1e-5)
  assert found["gap"] == pytest.approx(
    float(preference_games.regularised_gap(win_VV, logp_V, ref_V, TAU)), abs=1e-5
  )


def test_reward_is_the_tilted_reference():
  """The optimum of a Bradley-Terry reward is ref exp(reward / beta) / Z."""
  found = games.learn(
    1,
    objective="reinforce",
    hparams={"beta": 1.0},
    opponent=0.0,
    reward="bradley_terry",
    iterations=300,
    learning_rate=0.1,
  )
  win_VV, ref_V = games.game(1)
  reward_V = preference_games.bradley_terry(win_VV, jnp.asarray(ref_V))
  best_V = jax.nn.log_softmax(ref_V + reward_V)
  kl = float((jnp.exp(best_V) * (best_V - ref_V)).sum())
  assert found["kl"] == pytest.approx(kl, rel=1e-3)


def test_a_quarter_of_a_games_triples_are_cycles():
  """Of three independent fair matches two outcomes in eight are a cycle."""
  cycles = []
  for seed in range(200):
    win_VV, ref_V = games.game(seed)
    beats = (win_VV > 0.5).astype(int)
    cycles.append(np.einsum("ij,jk,ki->", beats, beats, beats) / 3)
  np.testing.assert_allclose(win_VV + win_VV.T, 1)
  np.testing.assert_allclose(np.exp(ref_V).sum(), 1)
  np.testing.assert_allclose(np.mean(cycles), math.comb(12, 3) / 4, rtol=0.03)
