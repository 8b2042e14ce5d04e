"""Weights are probabilities: a row of weight 2 is that row twice, of weight 0 none.

The theorems of this folder take expectations by weighting every completion by its
probability, which is right only where this holds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


@pytest.mark.parametrize(
  "name",
  [
    "kto",
    "bco",
    "orpo",
    "nll",
    "unlikelihood",
    "npo",
    "retain_kl",
    "d2o",
    "token_reward",
    "remax",
    "raft",
    "exploratory_dpo",
    "bnpo",
    "kwise",
  ],
)
def test_a_row_of_weight_2_is_that_row_twice(name):
  o = objectives.build(name)
  s = toy.scored_for(o, B=4)
  if s.present_BK.shape[1] > 1:  # an absent column in a row that counts
    s = s.replace(present_BK=s.present_BK.at[3, -1].set(0))

  @jax.jit
  def loss(s):
    return scored.evaluate(o, s, o.init(), jax.random.key(0)).loss

  weighted = loss(s.replace(weight_B=jnp.array([0.0, 1.0, 1.0, 2.0])))
  twice = jax.tree.map(lambda x: x[np.array([1, 2, 3, 3])], s)
  assert weighted == pytest.approx(float(loss(twice)), rel=1e-5)
  assert weighted != pytest.approx(float(loss(s)), rel=1e-3)
