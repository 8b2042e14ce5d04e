"""Labels and scores from a language model's log-probabilities: AI feedback."""

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


def debiased(logp_shown_BK: Array, logp_swapped_BK: Array) -> Array:
  """Preference of a labeller, averaged over both orders of the two answers.

  Distributions are averaged, not logits, and each is normalised over the two options
  only.

  Paper: RLAIF, Lee et al. 2023, arXiv:2309.00267, position debiasing.

  Args:
    logp_shown_BK: log-probs of the tokens "1" and "2" (or "A", "B"), answers shown in
      order; K = 2; need not be normalised.
    logp_swapped_BK: the same with the answers swapped, in the order of the tokens:
      column 0 stands for the second answer.

  Returns:
    `[B, 2]`: probability that the first answer, and the second, is preferred.
  """
  chex.assert_equal_shape([logp_shown_BK, logp_swapped_BK])
  chex.assert_axis_dimension(logp_shown_BK, -1, 2)
  shown_BK = jax.nn.softmax(logp_shown_BK)
  return (shown_BK + jax.nn.softmax(logp_swapped_BK)[..., ::-1]) / 2


def clamped(p_BK: Array, low: float = 0.4, high: float = 0.6) -> Array:
  """Labels of a labeller that argued first, kept from being too sure of themselves.

  Paper: Constitutional AI, Bai et al. 2022, arXiv:2212.08073, section 4: with
  chain of thought 0.4 and 0.6 (0.2 and 0.8 helped less); without, labels are not
  clamped. A pair of labels still adds up to 1 where low + high = 1.

  Args:
    p_BK: probability that each of two answers is preferred, both orders averaged.
    low: the least label; 0 <= low <= 0.5.
    high: the greatest; 0.5 <= high <= 1.

  Raises:
    ValueError: a bound out of range.
  """
  if not 0 <= low <= 0.5 <= high <= 1:
    raise ValueError(
      f"clamped: low={low!r}, high={high!r}; they must hold 0 <= low <= 0.5 <= high <= "
      "1 (paper: 0.4 and 0.6)"
    )
  return jnp.clip(p_BK, low, high)


def expected_score(logit_BJ: Array) -> Array:
  """Mean of the ratings 1 to J under a labeller's tokens for them, `[B]`.

  Paper: RLAIF, Lee et al. 2023, arXiv:2309.00267, direct RLAIF: J = 10.

  Args:
    logit_BJ: logits, or log-probs, of the tokens "1" to J; normalised over these only.
  """
  chex.assert_rank(logit_BJ, 2)
  score_J = 1 + jnp.arange(logit_BJ.shape[-1], dtype=logit_BJ.dtype)
  return (jax.nn.softmax(logit_BJ) * score_J[None]).sum(-1)


def rescaled(score_B: Array, least: float = 1.0, most: float = 10.0) -> Array:
  """Scores from [least, most] to [-1, 1], affinely.

  RLAIF only says that scores are normalised to [-1, 1]; that the map is affine is our
  reading.

  Raises:
    ValueError: least >= most.
  """
  if least >= most:
    raise ValueError(f"rescaled: least={least!r} must be below most={most!r}")
  return 2 * (score_B - least) / (most - least) - 1
