"""Preference games: win probabilities, mixtures, exact updates, exploitability.

A win matrix holds in row i, column j the probability P(i > j) that completion i is
preferred to completion j: P(i > j) + P(j > i) = 1, and 1/2 on the diagonal. It need not
come from rewards: preferences may be cyclic (rock, paper, scissors). Updates and gaps
are exact, for tabular policies over V completions, in nats and win probabilities.
"""

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


def from_rewards(reward_BK: Array) -> Array:
  """Bradley-Terry win matrix, sigma(r_i - r_j), `[B, K, K]`: never cyclic."""
  chex.assert_rank(reward_BK, 2)
  return jax.nn.sigmoid(reward_BK[:, :, None] - reward_BK[:, None, :])


def bradley_terry(win_VV: Array, logp_V: Array, steps: int = 30) -> Array:
  """Fits Bradley-Terry rewards to a win matrix, mean 0, `[V]`.

  Minimises, by Newton's method, the expected logistic loss on pairs of independent
  samples of the policy, labelled by the win matrix. At the minimum the predicted win
  rate of each completion against the policy equals its actual win rate: for cyclic
  preferences the rewards depend on the policy.

  Args:
    win_VV: row beats column; no completion may always win, since its reward would be
      infinite.
    logp_V: log-probabilities of the policy, all finite.
    steps: number of Newton steps.
  """
  chex.assert_shape(win_VV, (*logp_V.shape, logp_V.shape[0]))
  weight_VV = jnp.exp(logp_V[:, None] + logp_V[None])

  def loss(reward_V: Array) -> Array:
    margin_VV = reward_V[:, None] - reward_V[None]
    # Pairs leave the mean free; this term makes the minimum unique.
    mean_penalty = reward_V.mean() ** 2 / 2
    return mean_penalty - (weight_VV * win_VV * jax.nn.log_sigmoid(margin_VV)).sum()

  def step(_, reward_V: Array) -> Array:
    gradient_V = jax.grad(loss)(reward_V)
    hessian_VV = jax.hessian(loss)(reward_V)
    return reward_V - jnp.linalg.solve(hessian_VV, gradient_V)

  return jax.lax.fori_loop(0, steps, step, jnp.zeros_like(logp_V))


def symmetrised(raw_BKK: Array) -> Array:
  """Averages a win matrix over both presentation orders: (P_ij + 1 - P_ji) / 2."""
  chex.assert_rank(raw_BKK, 3)
  return (raw_BKK + 1 - raw_BKK.mT) / 2


def pair_win_rates(win_B: Array) -> Array:
  """Win rates of two completions against each other, `[B, 2]`: P and 1 - P."""
  chex.assert_rank(win_B, 1)
  return jnp.stack([win_B, 1 - win_B], 1)


def win_rate(win_BKK: Array, present_BK: Array) -> Array:
  """Mean probability to beat the group's completions, itself included (1/2), `[B, K]`.

  SPPO's estimate of P(y > policy) (Wu et al. 2024, arXiv:2405.00675).

  Args:
    win_BKK: row beats column.
    present_BK: 0 on padded columns, which are not counted and get 0.
  """
  chex.assert_shape(win_BKK, (*present_BK.shape, present_BK.shape[1]))
  both_BKK = present_BK[:, :, None] * present_BK[:, None, :]
  total_BK = jnp.where(both_BKK > 0, win_BKK, 0).sum(-1)
  return total_BK / jnp.maximum(present_BK.sum(-1, keepdims=True), 1)


def mixture(logits_CV: Array, ref_logits_CV: Array, share: float | Array) -> Array:
  """Geometric mixture policy^(1 - share) ref^share, as log-probabilities `[C, V]`.

  Nash-MD's opponent (Munos et al. 2023, arXiv:2312.00886), and the sampler of IPO-MD
  (Calandriello et al. 2024, arXiv:2403.08635). On next-token logits it is
  normalised per token, which is not the mixture of the two sequence distributions; on
  whole completions (V of them) it is exact.

  Args:
    logits_CV: the policy's logits or log-probs; -inf where the policy is 0.
    ref_logits_CV: the reference's.
    share: exponent of the reference, in [0, 1]: 0 is the policy, 1 the reference. With
      an exponent of 0 a logit of -inf counts as 0.
  """
  chex.assert_equal_shape([logits_CV, ref_logits_CV])
  parts = _times(1 - share, logits_CV) + _times(share, ref_logits_CV)
  return jax.nn.log_softmax(parts)


def _times(power: float | Array, logits_CV: Array) -> Array:
  # Select before the product: 0 * -inf would be NaN.
  return power * jnp.where(power == 0, 0, logits_CV)


def wins_against(win_VV: Array, logp_V: Array) -> Array:
  """P(y > policy) of every completion y, `[V]`."""
  chex.assert_shape(win_VV, (*logp_V.shape, logp_V.shape[0]))
  return win_VV @ jnp.exp(logp_V)


def nash_md_step(
  logp_V: Array,
  ref_logp_V: Array,
  win_VV: Array,
  beta: float | Array,
  eta: float | Array,
) -> Array:
  """One exact step of Nash-MD: policy' ~ mix exp(eta P(y > mix)).

  mix = `mixture` with share eta beta. The last iterate converges to the regularised
  equilibrium; with eta_t = 2 / (beta (t + 2)), t = 0, 1, .., its KL from it after T
  steps is at most 8 / (beta^2 (T + 1)).

  Paper: Munos et al. 2023, arXiv:2312.00886; beta is its tau.

  Args:
    logp_V: log-probabilities of the policy.
    ref_logp_V: of the reference, everywhere finite.
    win_VV: row beats column.
    beta: tie to ref; > 0.
    eta: step size; 0 < eta beta <= 1.

  Returns:
    Log-probabilities of the next policy.
  """
  mix_V = mixture(logp_V, ref_logp_V, eta * beta)
  return jax.nn.log_softmax(mix_V + eta * wins_against(win_VV, mix_V))


def sppo_step(logp_V: Array, win_VV: Array, eta: float | Array) -> Array:
  """One exact step of SPPO (multiplicative weights): policy' ~ policy exp(eta P).

  P is P(y > policy). The average of the iterates approaches the equilibrium of the
  game without a reference; the last iterate need not.

  Paper: Wu et al. 2024, arXiv:2405.00675.
  """
  return jax.nn.log_softmax(logp_V + eta * wins_against(win_VV, logp_V))


def exploitability(win_VV: Array, logp_V: Array) -> Array:
  """Exploitability of a policy: max P(y > policy) - 1/2; 0 at a Nash equilibrium."""
  return wins_against(win_VV, logp_V).max() - 0.5


def regularised_gap(
  win_VV: Array, logp_V: Array, ref_logp_V: Array, beta: float | Array
) -> Array:
  """Duality gap of the KL-regularised game; 0 at its unique equilibrium.

  The payoff is P(p > q) - beta KL(p || ref) + beta KL(q || ref). The best response to a
  policy is ref exp(P(y > policy) / beta) / Z, with value beta log Z.
  """
  chex.assert_equal_shape([logp_V, ref_logp_V])
  tilted_V = ref_logp_V + wins_against(win_VV, logp_V) / beta
  kl = (jnp.exp(logp_V) * (logp_V - ref_logp_V)).sum()
  return 2 * (beta * jax.nn.logsumexp(tilted_V) + beta * kl - 0.5)
