"""Preference labels and scores from a language model."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import ai_labels

ai_labels = compiled.module(ai_labels)


def test_position_biased_labeller_gives_one_half():
  always_first = jnp.log(jnp.array([[0.9, 0.1]]))
  np.testing.assert_allclose(
    ai_labels.debiased(always_first, always_first), [[0.5, 0.5]]
  )


def test_distributions_are_averaged_after_the_swap():
  shown, swapped = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 3.5]])
  p = (1 / (1 + np.exp(-2.0)) + 1 / (1 + np.exp(-2.5))) / 2
  np.testing.assert_allclose(
    ai_labels.debiased(shown, swapped), [[p, 1 - p]], rtol=1e-6
  )
  np.testing.assert_allclose(
    ai_labels.clamped(ai_labels.debiased(shown, swapped)), [[0.6, 0.4]], rtol=1e-6
  )
  with pytest.raises(ValueError, match=r"low=0\.6, high=0\.4"):
    ai_labels.clamped(shown, 0.6, 0.4)


def test_expected_score_of_uniform_and_of_certain_labellers():
  logits = jnp.stack([jnp.zeros(10), jnp.full(10, -1e9).at[6].set(0.0)])
  score = ai_labels.expected_score(logits)
  np.testing.assert_allclose(score, [5.5, 7], rtol=1e-6)
  np.testing.assert_allclose(ai_labels.rescaled(score), [0, 12 / 9 - 1], atol=1e-6)
  with pytest.raises(ValueError, match="must be below"):
    ai_labels.rescaled(score, 3.0, 3.0)
