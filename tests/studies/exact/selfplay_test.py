"""Rounds of self-play against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.ops import preference_games
from xpo_jax.studies.exact import games, selfplay


def test_dno_is_multiplicative_weights():
  beta = 0.5
  found = selfplay.rounds(
    0, objective="dno", hparams={"beta": beta}, count=4, steps=400
  )
  win_VV, first_V = games.game(0)
  policies = [np.exp(first_V)]
  for _ in range(4):
    weight_V = policies[-1] * np.exp(win_VV @ policies[-1] / beta)
    policies.append(weight_V / weight_V.sum())
  last, before, first = policies[-1], policies[-2], policies[0]
  assert found["error"].max() < 0.005
  assert found["gain"][-1] == pytest.approx(last @ win_VV @ before - 0.5, abs=2e-3)
  assert found["wins"][-1] == pytest.approx(last @ win_VV @ first - 0.5, abs=5e-3)
  average = np.mean(policies[1:], 0)
  exploited = (win_VV @ average).max() - 0.5
  assert found["exploitability"][-1] == pytest.approx(exploited, abs=5e-3)
  assert found["last"][-1] == pytest.approx((win_VV @ last).max() - 0.5, abs=5e-3)


def test_a_round_of_dpo_is_the_optimum_of_a_bradley_terry_reward():
  found = selfplay.rounds(1, objective="dpo", hparams={"beta": 2.0}, count=1, steps=400)
  win_VV, first_V = games.game(1)
  reward_V = preference_games.bradley_terry(win_VV, jnp.asarray(first_V))
  best_V = jax.nn.log_softmax(first_V + reward_V / 2.0)
  expected = preference_games.exploitability(win_VV, best_V)
  assert found["last"][0] == pytest.approx(float(expected), abs=2e-3)
  assert found["error"][0] > 0.01  # not the step of SPPO


def test_sppo_comes_close_to_the_exact_step_where_steps_are_small():
  far, near = (
    float(
      selfplay.rounds(0, objective="sppo", hparams={"beta": beta}, count=1, steps=400)[
        "error"
      ][0]
    )
    for beta in (0.3, 10.0)
  )
  assert near < 1e-3 < far
