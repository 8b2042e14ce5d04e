"""Returns and advantages against their definitions, written as loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import returns
from xpo_jax.testing import toy

returns = compiled.module(returns)

GAMMA, LAM = 0.9, 0.7


@pytest.fixture(scope="module")
def s():
  return toy.scored(K=3)  # lengths 0 to 5


def by_hand(reward, value, mask, gamma, lam):
  """GAE of one completion, its real tokens only."""
  at = np.flatnonzero(mask)
  advantage = np.zeros(len(mask))
  for i, t in enumerate(at):
    total = 0.0
    for ahead, j in enumerate(at[i:]):
      after = value[at[i + ahead + 1]] if i + ahead + 1 < len(at) else 0.0
      delta = reward[j] + gamma * after - value[j]
      total += (gamma * lam) ** ahead * delta
    advantage[t] = total
  return advantage


def rows(s, mask):
  fields = (s.reward_BKT, s.value_BKT, mask)
  return [np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in fields]


@pytest.mark.parametrize("gap", [False, True])
def test_gae_is_the_discounted_sum_of_td_errors(s, gap):
  mask = s.mask_BKT.at[:, :, 1].set(0) if gap else s.mask_BKT
  advantage, target = returns.gae(s.reward_BKT, s.value_BKT, mask, GAMMA, LAM)
  reward, value, real = rows(s, mask)
  expected = [
    by_hand(*row, GAMMA, LAM) for row in zip(reward, value, real, strict=True)
  ]
  expected = np.stack(expected)
  np.testing.assert_allclose(advantage.reshape(expected.shape), expected, atol=1e-5)
  expected = np.where(real > 0, expected + value, 0)
  np.testing.assert_allclose(target.reshape(expected.shape), expected, atol=1e-5)


def test_gae_at_lam_1_is_return_minus_value_and_at_lam_0_td_error(s):
  args = (s.reward_BKT, s.value_BKT, s.mask_BKT, GAMMA)
  whole, target = returns.gae(*args, 1.0)
  ahead = returns.discounted(s.reward_BKT, s.mask_BKT, GAMMA)
  value = np.asarray(s.value_BKT) * np.asarray(s.mask_BKT)
  np.testing.assert_allclose(whole, ahead - value, atol=1e-5)
  np.testing.assert_allclose(target, ahead, atol=1e-5)
  one, _ = returns.gae(*args, 0.0)
  after = np.concatenate([value[..., 1:], np.zeros_like(value[..., :1])], -1)
  error = np.asarray(s.reward_BKT) + GAMMA * after - value
  np.testing.assert_allclose(one, error * np.asarray(s.mask_BKT), atol=1e-5)


@pytest.mark.nonfinite  # padding holds infinities
def test_padding_is_never_read(s):
  arrays = (s.reward_BKT, s.value_BKT)
  junk = [jnp.where(s.mask_BKT > 0, x, jnp.inf) for x in arrays]
  clean = returns.gae(*arrays, s.mask_BKT, GAMMA, LAM)
  dirty = returns.gae(*junk, s.mask_BKT, GAMMA, LAM)
  np.testing.assert_array_equal(dirty, clean)


def test_score_is_placed_on_the_last_token_or_one_past_it():
  mask = jnp.array([[[1.0, 1, 0], [1, 1, 1], [0, 0, 0]]])
  score = jnp.array([[5.0, -7.0, 3.0]])
  last = returns.place(score, mask)
  np.testing.assert_array_equal(last, [[[0, 5, 0], [0, 0, -7], [0, 0, 0]]])
  past = returns.place(score, returns.one_longer(mask), max_score=4.0)
  np.testing.assert_array_equal(past, [[[0, 0, 4], [0, 0, -4], [3, 0, 0]]])


def test_kl_penalty_is_subtracted_from_every_token():
  score, kl = jnp.array([[[0.0, 5.0]]]), jnp.array([[[1.0, -2.0]]])
  np.testing.assert_allclose(
    returns.kl_shaped(score, kl, 0.1), [[[-0.1, 5.2]]], rtol=1e-6
  )


def test_rto_adds_dense_credit_to_the_score_and_the_penalty():
  mask = jnp.array([[[1.0, 1.0, 0.0]]])
  dpo, ref, kl = (jnp.array([[[a, b, 9.0]]]) for a, b in ((3, 1), (1, 2), (0.5, 0.25)))
  credit = returns.rto_credit(dpo, ref, mask, scale=0.5)
  np.testing.assert_allclose(credit, [[[0.5 * 2, 0.5 * -1, 0]]])
  near = returns.rto_credit(dpo, ref, mask, scale=0.5, max_credit=0.7)
  np.testing.assert_allclose(near, [[[0.7, -0.5, 0]]])
  reward = returns.rto_reward(credit, jnp.array([[20.0]]), kl, mask, 0.1, 10.0)
  np.testing.assert_allclose(reward, [[[1 - 0.05, -0.5 - 0.025 + 10, 0]]], rtol=1e-6)


@pytest.mark.parametrize("unbiased", [False, True])
def test_whitening_gives_mean_0_and_deviation_1_over_its_population(s, unbiased):
  x, mask = s.reward_BKT, s.mask_BKT
  own = np.asarray(x, np.float64)[np.asarray(mask) > 0]
  mean, variance = returns.moments(x, mask, unbiased=unbiased)
  np.testing.assert_allclose(mean, own.mean(), atol=1e-6)
  np.testing.assert_allclose(variance, own.var(ddof=unbiased), rtol=1e-5)
  expected = (np.asarray(x) - own.mean()) / np.sqrt(own.var(ddof=unbiased) + 0.25)
  white = returns.whiten(x, mask, unbiased=unbiased, eps=0.25)
  np.testing.assert_allclose(white, expected, atol=1e-5)
  scaled = returns.whiten(x, mask, unbiased=unbiased, eps=0.25, shift_mean=False)
  np.testing.assert_allclose(scaled, expected + own.mean(), atol=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_whitening_one_token_or_none_is_finite(unbiased):
  x = jnp.array([3.0, 4.0])
  for population in (jnp.array([1.0, 0.0]), jnp.zeros(2), jnp.ones(2)):
    white = returns.whiten(x, population, unbiased=unbiased)
    assert np.isfinite(white).all()
  assert returns.whiten(x, jnp.array([1.0, 0.0]), unbiased=unbiased)[0] == 0


def test_equal_rewards_whiten_to_0():
  x = jnp.full(7, 0.1)
  np.testing.assert_allclose(returns.whiten(x, jnp.ones(7)), 0, atol=1e-3)


def test_gae_is_one_scan_over_time():
  shape = jax.ShapeDtypeStruct((2, 3, 64), jnp.float32)
  text = str(jax.make_jaxpr(returns.gae)(shape, shape, shape, 1.0, 0.95))
  assert text.count(" scan[") == 1
  assert "length=64" in text


def test_explained_variance_of_exact_constant_and_worse_values():
  target = jnp.array([1.0, 3.0, 5.0, 99.0])
  population = jnp.array([1.0, 1.0, 1.0, 0.0])
  exact, constant = jnp.zeros(4), target - 3
  assert float(returns.explained(exact, target, population)) == 1
  assert float(returns.explained(constant, target, population)) == pytest.approx(0)
  # Values of the opposite sign: the error has 4 times the variance.
  worse = target + target
  assert float(returns.explained(worse, target, population)) == pytest.approx(-3)
  assert float(returns.explained(constant, jnp.ones(4), population)) == 0
