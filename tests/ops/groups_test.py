"""Statistics over a group, against NumPy on the present completions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import groups

groups = compiled.module(groups)

NAN = np.nan
# Full, ragged, a tie at both ends, one completion, none.
X = np.array(
  [[0.3, -1.2, 2.5], [0.7, NAN, -0.4], [1.5, 1.5, 1.5], [NAN, 4.0, NAN], [NAN] * 3],
  np.float32,
)
PRESENT = np.where(np.isnan(X), 0, 1).astype(np.float32)


def each(function, empty):
  """`function` of the present values of each group, in their columns."""
  out = np.zeros(X.shape)
  for b, (x, here) in enumerate(zip(X, PRESENT > 0, strict=True)):
    if here.any():
      out[b, here] = function(x[here].astype(np.float64))
    else:
      out[b] = empty
  return out


def without_each(x):
  return [np.delete(x, i).mean() if len(x) > 1 else 0 for i in range(len(x))]


def own_std(x, ddof):
  return x.std(ddof=ddof) if len(x) > 1 else 0.0


@pytest.mark.nonfinite
@pytest.mark.parametrize(
  ("function", "expected"),
  [
    (groups.centre, lambda x: x - x.mean()),
    (groups.leave_one_out, without_each),
    (
      groups.leave_one_out_advantage,
      lambda x: x - without_each(x) if len(x) > 1 else 0 * x,
    ),
    (
      groups.standardise,
      lambda x: (x - x.mean()) / (own_std(x, 1) + 1e-4),
    ),
    (
      lambda x, p: groups.standardise(x, p, ddof=0, eps=0.1),
      lambda x: (x - x.mean()) / (own_std(x, 0) + 0.1),
    ),
    (
      lambda x, p: groups.standardise(x, p, over=groups.Over.NOTHING),
      lambda x: x - x.mean(),
    ),
    (
      lambda x, p: groups.standardise(x, p, over=groups.Over.BATCH),
      lambda x: (x - x.mean()) / (np.nanstd(np.float64(X), ddof=1) + 1e-4),
    ),
  ],
)
def test_statistics_are_those_of_the_present_columns(function, expected):
  expected = each(expected, 0)
  np.testing.assert_allclose(function(X, PRESENT), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.nonfinite
def test_mean_std_and_count_of_each_group():
  rows = [x[here] for x, here in zip(np.float64(X), PRESENT > 0, strict=True)]
  mean = [row.mean() if len(row) else 0 for row in rows]
  np.testing.assert_allclose(groups.mean(X, PRESENT), mean, rtol=1e-6)
  std = [own_std(row, 0) for row in rows]
  np.testing.assert_allclose(groups.std(X, PRESENT, ddof=0), std, rtol=1e-6, atol=1e-7)
  assert groups.count(PRESENT).tolist() == [len(row) for row in rows]
  np.testing.assert_allclose(groups.total(X, PRESENT), [sum(row) for row in rows], 1e-6)


@pytest.mark.nonfinite
@pytest.mark.nonfinite
def test_differ_is_0_for_equal_values():
  assert groups.differ(X, PRESENT).tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("x", [0.1, 1 / 3, 1e7 / 3])
def test_equal_rewards_give_exactly_0(x):
  """0.1 + 0.1 + 0.1 is not 0.3: a plain mean leaves 1e-9 for eps = 1e-9 to divide."""
  x_BK, every_BK = jnp.full((1, 7), x), jnp.ones((1, 7))
  assert not groups.standardise(x_BK, every_BK, eps=1e-9).any()
  assert not groups.leave_one_out_advantage(x_BK, every_BK).any()


@pytest.mark.nonfinite
def test_unmasked_nan_reward_stays_nan():
  assert np.isnan(groups.centre(X, np.ones_like(PRESENT))[1]).all()


@pytest.mark.nonfinite
def test_weighted_sum_skips_missing_rewards():
  reward = np.array([[[1.0, 2.0], [NAN, 2.0], [NAN, NAN]]])
  total, present = groups.weighted_sum(
    jnp.asarray(reward), jnp.array([1.0, 0.5]), ~np.isnan(reward)
  )
  np.testing.assert_allclose(total, [[1 + 0.5 * 2, 0.5 * 2, 0]])
  assert present.tolist() == [[1, 1, 0]]


def test_gradient_of_an_empty_group_is_0():
  def total(x):
    return groups.centre(x, jnp.zeros((1, 3))).sum()

  np.testing.assert_array_equal(jax.grad(total)(jnp.ones((1, 3))), jnp.zeros((1, 3)))
