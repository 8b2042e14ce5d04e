"""Repeated tokens and n-grams, and the unlikelihood of candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests import compiled
from xpo_jax.ops import repetition

repetition = compiled.module(repetition)

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, size=(2, 2, 9))
MASK = (np.arange(9) < np.array([[9, 4], [1, 0]])[..., None]).astype(np.float32)


def sets_of_previous(tokens, length, always):
  actual = np.zeros((len(tokens), 4))
  for t in range(length):
    actual[t, [v for v in {*tokens[:t], *always} if v != tokens[t]]] = 1
  return actual


@pytest.mark.parametrize("always", [(), (3,)])
def test_previous_tokens_are_the_set_of_earlier_tokens(always):
  actual = repetition.previous_tokens(TOKENS, MASK, 4, always)
  for b, k in np.ndindex(2, 2):
    expected = sets_of_previous(TOKENS[b, k], int(MASK[b, k].sum()), always)
    np.testing.assert_array_equal(actual[b, k], expected)


def marks(tokens, mask, n):
  actual, seen = np.zeros(len(tokens)), set()
  for t in range(len(tokens) - n + 1):
    gram = tuple(tokens[t : t + n])
    if not mask[t : t + n].all():
      continue
    if gram in seen:
      actual[t : t + n] = 1
    seen.add(gram)
  return actual


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repeated_ngrams_are_marked_including_the_last(n):
  rng = np.random.default_rng(1)
  tokens = rng.integers(2, size=(16, 2, 9))
  mask = (np.arange(9) < rng.integers(10, size=(16, 2, 1))).astype(np.float32)
  mask[:8, :, 3] = 0  # a gap: a tool's answer
  actual = repetition.repeated_ngrams(tokens, mask, n)
  for b, k in np.ndindex(16, 2):
    expected = marks(tokens[b, k], mask[b, k], n)
    np.testing.assert_array_equal(actual[b, k], expected)
  same = repetition.repeated_ngrams(np.zeros((1, 1, 9), int), np.ones((1, 1, 9)), n)
  np.testing.assert_array_equal(same[0, 0], [0] + [1] * 8)


def test_ngram_length_below_1_is_refused():
  with pytest.raises(ValueError, match="n=0; it must be at least 1"):
    repetition.repeated_ngrams(TOKENS, MASK, 0)


def test_unlikelihood_oracle():
  logits = RNG.normal(size=(1, 1, 4, 5)) * 2
  candidate = RNG.integers(2, size=logits.shape)
  expected = -(np.log(1 - special.softmax(logits, -1)) * candidate).sum(-1)
  actual = repetition.unlikelihood(logits, candidate)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_unlikelihood_of_a_certain_token_is_finite():
  logits, candidate = jnp.array([[[[0.0, 500.0, 0.0]]]]), jnp.ones((1, 1, 1, 3))

  def total(logits):
    return repetition.unlikelihood(logits, candidate).sum()

  value, slope = jax.value_and_grad(total)(logits)
  assert value == pytest.approx(500 - np.log(2))
  np.testing.assert_allclose(slope[0, 0, 0], [-0.5, 1.0, -0.5], atol=1e-6)
