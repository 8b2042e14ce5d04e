"""A mixture of experts against a loop over tokens in NumPy, and its balance loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import experts
from xpo_jax.types import Routing

experts = compiled.module(experts)

T, E, J, D, F = 7, 5, 2, 4, 3
RNG = np.random.default_rng(0)
LOGITS_TE = RNG.normal(size=(T, E)).astype(np.float32)
X_TD = RNG.normal(size=(T, D)).astype(np.float32)
KERNEL_EDF = RNG.normal(size=(E, D, F)).astype(np.float32)


def softmax(x):
  exp = np.exp(x - x.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


@pytest.mark.parametrize("normalised", [True, False])
def test_weights_are_those_of_the_likeliest(normalised):
  weight_TJ, index_TJ = experts.choose(jnp.asarray(LOGITS_TE), J, normalised)
  prob_TE = softmax(LOGITS_TE)
  for t in range(T):
    best = np.argsort(-prob_TE[t])[:J]
    np.testing.assert_array_equal(index_TJ[t], best)
    expected = prob_TE[t, best]
    expected = expected / expected.sum() if normalised else expected
    np.testing.assert_allclose(weight_TJ[t], expected, rtol=1e-5)


@functools.partial(jax.jit, static_argnames="first")
def product(x_TD, kernel_EDF, weight_TJ, index_TJ, first=0):
  groups = experts.group(index_TJ - first, len(kernel_EDF))
  y_SF = jax.lax.ragged_dot(experts.take(x_TD, groups), kernel_EDF, groups.size_E)
  return experts.put(y_SF, groups, weight_TJ)


# All experts in use; one that takes every token (no capacity bounds it); none at all
# for some experts.
CHOICES = {
  "mixed": np.argsort(-LOGITS_TE)[:, :J],
  "one": np.tile([3, 0], (T, 1)),
  "ends": np.tile([0, E - 1], (T, 1)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_product_equals_a_loop_over_tokens(name):
  index_TJ = CHOICES[name]
  weight_TJ = RNG.uniform(0.1, 1, (T, J)).astype(np.float32)
  expected = np.zeros((T, F))
  for t in range(T):
    for weight, e in zip(weight_TJ[t], index_TJ[t], strict=True):
      expected[t] += weight * (X_TD[t].astype(float) @ KERNEL_EDF[e])
  args = [jnp.asarray(x) for x in (X_TD, KERNEL_EDF, weight_TJ, index_TJ)]
  np.testing.assert_allclose(product(*args), expected, atol=1e-5)
  # Experts on two devices: each adds its own, and nothing of the other's.
  x, kernel, weight, index = args
  parts = [product(x, kernel[a:b], weight, index, a) for a, b in ((0, 2), (2, E))]
  np.testing.assert_allclose(sum(parts), expected, atol=1e-5)


def test_gradient_of_the_product_equals_that_of_a_dense_sum():
  index_TJ = jnp.asarray(CHOICES["mixed"])
  weight_TJ = jnp.asarray(RNG.uniform(0.1, 1, (T, J)), jnp.float32)

  def dense(x_TD, kernel_EDF, weight_TJ):
    y_TEF = jnp.einsum("td,edf->tef", x_TD, kernel_EDF)
    chosen_TJF = jnp.take_along_axis(y_TEF, index_TJ[..., None], axis=1)
    return (jnp.sin(chosen_TJF * weight_TJ[..., None]).sum(1) ** 2).sum()

  def ragged(x_TD, kernel_EDF, weight_TJ):
    out = []
    for j in range(J):
      one = slice(j, j + 1)
      out.append(product(x_TD, kernel_EDF, weight_TJ[:, one], index_TJ[:, one]))
    return (jnp.sin(jnp.stack(out)).sum(0) ** 2).sum()

  args = (jnp.asarray(X_TD), jnp.asarray(KERNEL_EDF), weight_TJ)
  gradients = jax.jit(jax.grad(ragged, (0, 1, 2)))(*args)
  expected = jax.jit(jax.grad(dense, (0, 1, 2)))(*args)
  for ours, theirs in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


ROUTING = jax.jit(experts.routing, static_argnums=2)


def routing(logits_RLE, mask_RL):
  return ROUTING(jnp.asarray(logits_RLE), jnp.asarray(mask_RL), J)


def test_balance_loss_equals_the_formula_without_padding():
  logits_RLE = RNG.normal(size=(2, 4, E)).astype(np.float32)
  mask_RL = np.array([[1, 1, 1, 0], [2, 0, 3, 3]])  # segments of packed rows
  real = logits_RLE[mask_RL != 0]
  chosen = np.argsort(-real)[:, :J]
  f_E = np.bincount(chosen.reshape(-1), minlength=E) / len(real)
  expected = E * (f_E * softmax(real).mean(0)).sum()
  whole = routing(logits_RLE, mask_RL)
  np.testing.assert_allclose(experts.load_balance(whole, whole).value, expected, 1e-5)
  # Rows are parts that add up to the whole.
  rows = [jax.tree.map(lambda x, r=r: x[r : r + 1], whole) for r in range(2)]
  total = experts.load_balance(rows[0], whole) + experts.load_balance(rows[1], whole)
  np.testing.assert_allclose(total.value, expected, 1e-5)
  # The number of choices is not differentiated, and padding gets no gradient.
  grad = jax.grad(
    lambda x: experts.load_balance(routing(x, mask_RL), routing(x, mask_RL)).value
  )(jnp.asarray(logits_RLE))
  assert (np.abs(grad).max(-1) > 0).tolist() == (mask_RL != 0).tolist()


def test_balance_loss_of_even_choices_is_their_number():
  even = np.eye(E)[[0, 1, 2, 3, 4]] + np.eye(E)[[1, 2, 3, 4, 0]]
  uneven = np.tile(np.eye(E)[0] + np.eye(E)[1], (E, 1))
  losses = []
  for logits_TE in (even, uneven):
    one = routing(3 * logits_TE[None].astype(np.float32), np.ones((1, E)))
    losses.append(float(experts.load_balance(one, one).value))
  np.testing.assert_allclose(losses[0], J, rtol=1e-6)
  assert losses[1] > 1.5 * J


def test_balance_loss_of_no_token_is_zero():
  none = Routing(jnp.zeros((1, E)), jnp.zeros((1, E)), jnp.zeros(1))
  assert float(experts.load_balance(none, none).value) == 0
