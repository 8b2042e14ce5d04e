"""Tests merges of models fine-tuned from one base."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.models import merge

BASE = {"a": jnp.zeros((2, 2)), "b": {"c": jnp.ones(2, jnp.bfloat16)}}
ONE = {"a": jnp.array([[4.0, -1.0], [0.5, 0.0]]), "b": {"c": jnp.array([-3.0, 2.0])}}
TWO = {"a": jnp.array([[2.0, 3.0], [-0.6, 0.0]]), "b": {"c": jnp.array([-1.0, -5.0])}}


def test_apply_inverts_delta_in_the_bases_dtypes():
  model = merge.apply(BASE, ONE)
  assert model["b"]["c"].dtype == jnp.bfloat16
  chex.assert_trees_all_equal(merge.delta(model, BASE), ONE)
  half = merge.apply(BASE, ONE, 0.5)
  np.testing.assert_array_equal(half["b"]["c"], [1 - 1.5, 1 + 1])


def test_linear_is_the_mean_and_task_arithmetic_the_sum():
  mean = merge.apply(BASE, merge.linear([ONE, TWO], [3.0, 1.0]))
  np.testing.assert_allclose(mean["a"], 0.75 * ONE["a"] + 0.25 * TWO["a"])
  total = merge.task_arithmetic([ONE, TWO], [0.3, 0.3])
  np.testing.assert_allclose(total["a"], 0.3 * ONE["a"] + 0.3 * TWO["a"], rtol=1e-6)


def test_trim_keeps_the_fraction_over_the_whole_tree():
  half = merge.trim(ONE, 0.5)  # of 4, 1, 0.5, 0, 3, 2
  np.testing.assert_array_equal(half["a"], [[4, 0], [0, 0]])
  np.testing.assert_array_equal(half["b"]["c"], [-3, 2])
  chex.assert_trees_all_equal(merge.trim(ONE, 1.0), ONE)
  assert not any(x.any() for x in jax.tree.leaves(merge.trim(ONE, 0.1)))
  for keep in (0.0, 1.5):
    with pytest.raises(ValueError, match=f"keep={keep} must be > 0 and <= 1"):
      merge.trim(ONE, keep)


def oracle(deltas, keep, mean):
  """Computes TIES on vectors, from the paper."""
  trimmed = []
  for d in deltas:
    kept_entries = np.argsort(-np.abs(d))[: int(keep * d.size)]
    trimmed.append(np.where(np.isin(np.arange(d.size), kept_entries), d, 0))
  merged = np.zeros(deltas[0].size)
  for i in range(merged.size):
    entries = [d[i] for d in trimmed]
    agree = [x for x in entries if np.sign(x) == np.sign(sum(entries)) != 0]
    merged[i] = sum(agree) / (len(agree) if mean else 1) if agree else 0
  return merged


@pytest.mark.parametrize("keep", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("mean", [True, False])
def test_ties_equals_a_numpy_oracle(keep, mean):
  deltas = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
  trees = [
    {"x": jnp.asarray(d[:12].reshape(3, 4)), "y": jnp.asarray(d[12:])} for d in deltas
  ]
  combine = merge.disjoint_mean if mean else merge.disjoint_sum
  out = merge.ties(trees, keep, combine)
  flat = np.concatenate([np.asarray(out["x"]).ravel(), out["y"]])
  np.testing.assert_allclose(flat, oracle(deltas, keep, mean), rtol=1e-6)


def test_ties_elects_by_sum_and_averages_agreeing_entries():
  signs = merge.elect_sign([ONE, TWO])
  np.testing.assert_array_equal(signs["a"], [[1, 1], [-1, 0]])
  merged = merge.ties([ONE, TWO], keep=1.0)
  np.testing.assert_allclose(merged["a"], [[3, 3], [-0.6, 0]], rtol=1e-6)
  np.testing.assert_allclose(merged["b"]["c"], [-2, -5])


def test_dare_keeps_the_mean_and_the_stated_fraction():
  keys = jax.random.split(jax.random.key(0), 4000)
  many = jax.jit(jax.vmap(lambda key: merge.dare(ONE, 0.8, key)))(keys)
  for drawn, one in zip(jax.tree.leaves(many), jax.tree.leaves(ONE), strict=True):
    kept_entries = np.asarray(drawn != 0)
    live = np.asarray(one) != 0
    np.testing.assert_allclose(
      kept_entries.mean(0)[live], 0.2, atol=5 * 0.4 / 4000**0.5
    )
    # An entry's variance is x^2 p / (1 - p), p the probability of dropping.
    error = np.abs(np.asarray(drawn).mean(0) - one)
    assert (error <= 5 * 2 * np.abs(one) / 4000**0.5).all()
    assert np.isin(
      np.round(np.asarray(drawn) / np.where(live, one, 1), 4), [0, 5]
    ).all()
  chex.assert_trees_all_equal(merge.dare(ONE, 0.0, keys[0]), ONE)
  with pytest.raises(ValueError, match=r"drop=1\.0 must be >= 0 and < 1"):
    merge.dare(ONE, 1.0, keys[0])


def test_trees_that_differ_raise_with_the_path():
  other = {"a": ONE["a"], "b": {"d": ONE["b"]["c"]}}
  with pytest.raises(ValueError, match=r"only the first has the leaf \['b'\]\['c'\]"):
    merge.delta(other, BASE)
  wide = {"a": jnp.zeros((2, 3)), "b": ONE["b"]}
  with pytest.raises(ValueError, match=r"at \['a'\]: \(2, 2\) in the first, \(2, 3\)"):
    merge.ties([ONE, wide])
  with pytest.raises(ValueError, match="1 weights for 2 deltas"):
    merge.linear([ONE, TWO], [1.0])
  with pytest.raises(ValueError, match="no trees"):
    merge.task_arithmetic([], [])
