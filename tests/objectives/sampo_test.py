"""SamPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy
from xpo_jax.types import Aux


def check():
  """The objective on a given draw against float64 NumPy."""
  s = toy.scored(K=2)
  mask = np.asarray(s.mask_BKT)
  drawn = np.where(np.cumsum(mask, -1) <= mask.sum(-1).min(-1)[:, None, None], mask, 0)
  gap = np.asarray(s.logp_BKT, np.float64) - np.asarray(s.ref_logp_BKT, np.float64)
  u = (gap * drawn).sum(-1)
  expected = np.log1p(np.exp(-0.3 * (u[:, 0] - u[:, 1])))
  out = objectives.sampo(beta=0.3).loss(s, Aux(rows=jnp.asarray(drawn)))
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)
  key = jax.random.key(0)
  actual = objectives.down_sample(s.mask_BKT, s.row_B, key)
  assert (np.asarray(actual).sum(-1) == mask.sum(-1).min(-1)[:, None]).all()


def test_oracle_on_a_given_draw():
  check()


def test_draw_is_uniform_over_completion_tokens():
  mask_BKT = np.zeros((2000, 2, 5), np.float32)
  mask_BKT[:, 0, :4] = 1  # four tokens against two
  mask_BKT[:, 1, :2] = 1
  drawn = objectives.down_sample(mask_BKT, np.arange(2000), jax.random.key(1))
  drawn = np.asarray(drawn)
  np.testing.assert_array_equal(drawn[:, 1], mask_BKT[:, 1])
  assert (drawn[:, 0].sum(-1) == 2).all()
  # Each of four tokens is drawn with probability 1/2: 5 standard errors.
  share = drawn[:, 0].mean(0)
  np.testing.assert_allclose(share, [0.5] * 4 + [0], atol=5 * 0.5 / np.sqrt(2000))


def test_draw_depends_on_the_row_not_its_position():
  s, key = toy.scored(K=2), jax.random.key(3)
  whole = np.asarray(objectives.down_sample(s.mask_BKT, s.row_B, key))
  part = objectives.down_sample(s.mask_BKT[4:], s.row_B[4:], key)
  np.testing.assert_array_equal(part, whole[4:])
  other = objectives.down_sample(s.mask_BKT, s.row_B, jax.random.key(4))
  assert (np.asarray(other) != whole).any()


def test_margin_is_exactly_0_at_policy_equal_to_ref():
  s, o = toy.scored(K=2, policy_equals_ref=True), objectives.sampo()
  for seed in range(3):
    out = scored.evaluate(o, s, key=jax.random.key(seed))
    assert out.metrics["reward_margin"] == 0
    np.testing.assert_array_equal(out.per_example_B, np.float32(np.log(2)))


def test_equal_lengths_are_dpo():
  s = toy.scored(K=2)
  s = scored.from_token_logps(s.logp_BKT, jnp.ones_like(s.logp_BKT), s.ref_logp_BKT)
  out = scored.evaluate(objectives.sampo(beta=0.3), s, key=jax.random.key(0))
  expected = scored.evaluate(objectives.dpo(beta=0.3), s).per_example_B
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-6)


def test_key_is_required():
  with pytest.raises(ValueError, match="sampo draws random numbers and key=None"):
    scored.evaluate(objectives.sampo(), toy.scored(K=2))
