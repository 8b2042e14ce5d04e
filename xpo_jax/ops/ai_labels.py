"""Preference labels and scores from a language model's log-probabilities."""

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


def debiased(logp_shown_BK: Array, logp_swapped_BK: Array) -> Array:
  """Averages a labeller's preference over both presentation orders of a pair.

  The two distributions are averaged, not their logits; each is normalised over the two
  options only.

  Paper: RLAIF, Lee et al. 2023, arXiv:2309.00267, position debiasing.

  Args:
    logp_shown_BK: log-probs of the tokens "1" and "2" (or "A", "B") with the
      completions in order; K = 2; need not be normalised.
    logp_swapped_BK: the same with the completions swapped, in the order of the tokens:
      column 0 refers to the second completion.

  Returns:
    `[B, 2]`: probability that the first, and the second, completion is preferred.
  """
  chex.assert_equal_shape([logp_shown_BK, logp_swapped_BK])
  chex.assert_axis_dimension(logp_shown_BK, -1, 2)
  shown_BK = jax.nn.softmax(logp_shown_BK)
  return (shown_BK + jax.nn.softmax(logp_swapped_BK)[..., ::-1]) / 2


def clamped(p_BK: Array, low: float = 0.4, high: float = 0.6) -> Array:
  """Clips soft labels to [low, high], for labels made with chain of thought.

  Paper: Constitutional AI, Bai et al. 2022, arXiv:2212.08073, section 4: 0.4 and 0.6
  with chain of thought (0.2 and 0.8 helped less); labels without it are not clipped.
  The two labels of a pair still add up to 1 where low + high = 1.

  Args:
    p_BK: probability that each of two completions is preferred, averaged over both
      orders.
    low: smallest label; 0 <= low <= 0.5.
    high: largest label; 0.5 <= high <= 1.

  Raises:
    ValueError: a bound out of range.
  """
  if not 0 <= low <= 0.5 <= high <= 1:
    raise ValueError(
      f"clamped: low={low!r}, high={high!r}; they must satisfy 0 <= low <= 0.5 <= "
      "high <= 1 (paper: 0.4 and 0.6)"
    )
  return jnp.clip(p_BK, low, high)


def expected_score(logit_BJ: Array) -> Array:
  """Expected rating under a labeller's distribution over the ratings 1 to J, `[B]`.

  Paper: RLAIF, Lee et al. 2023, arXiv:2309.00267, direct RLAIF: J = 10.

  Args:
    logit_BJ: logits or log-probs of the tokens "1" to J; normalised over these only.
  """
  chex.assert_rank(logit_BJ, 2)
  score_J = 1 + jnp.arange(logit_BJ.shape[-1], dtype=logit_BJ.dtype)
  return (jax.nn.softmax(logit_BJ) * score_J[None]).sum(-1)


def rescaled(score_B: Array, low: float = 1.0, high: float = 10.0) -> Array:
  """Maps scores affinely from [low, high] to [-1, 1].

  RLAIF states only that scores are normalised to [-1, 1]; the affine map is assumed
  here.

  Raises:
    ValueError: low >= high.
  """
  if low >= high:
    raise ValueError(f"rescaled: low={low!r} must be below high={high!r}")
  return 2 * (score_B - low) / (high - low) - 1
