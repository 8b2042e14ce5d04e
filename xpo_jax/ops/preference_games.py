"""Preferences as a game: win probabilities, mixtures, exact steps, equilibria.

A matrix of wins holds in row i, column j the probability P(i > j) that answer i is
preferred to answer j: P(i > j) + P(j > i) = 1, and 1/2 on the diagonal. It need not
come from rewards: paper may beat rock, scissors paper, and rock scissors. The steps and
gaps are of tabular policies over V answers, exact, in nats and win probabilities.
"""

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


def from_rewards(reward_BK: Array) -> Array:
  """Bradley-Terry's matrix of wins, sigma(r_i - r_j), `[B, K, K]`: never a cycle."""
  chex.assert_rank(reward_BK, 2)
  return jax.nn.sigmoid(reward_BK[:, :, None] - reward_BK[:, None, :])


def bradley_terry(win_VV: Array, logp_V: Array, steps: int = 30) -> Array:
  """The reward that Bradley-Terry reads into a game, mean 0, `[V]`.

  It minimises the expected logistic loss on pairs of independent draws of the policy,
  labelled by the game, by Newton's method. At the minimum, against the policy, each
  answer is predicted to win as often as it does: with a cycle in the game the reward
  depends on who plays.

  Args:
    win_VV: row beats column; no answer that always wins, for its reward has no end.
    logp_V: log-probabilities of the policy, all finite.
    steps: of Newton's method.
  """
  chex.assert_shape(win_VV, (*logp_V.shape, logp_V.shape[0]))
  weight_VV = jnp.exp(logp_V[:, None] + logp_V[None])

  def loss(reward_V: Array) -> Array:
    margin_VV = reward_V[:, None] - reward_V[None]
    shift = reward_V.mean() ** 2 / 2  # what pairs do not tell, so that it has a minimum
    return shift - (weight_VV * win_VV * jax.nn.log_sigmoid(margin_VV)).sum()

  def step(_, reward_V: Array) -> Array:
    slope_V, bend_VV = jax.grad(loss)(reward_V), jax.hessian(loss)(reward_V)
    return reward_V - jnp.linalg.solve(bend_VV, slope_V)

  return jax.lax.fori_loop(0, steps, step, jnp.zeros_like(logp_V))


def symmetrised(raw_BKK: Array) -> Array:
  """A matrix of wins from a model asked in both orders: (P_ij + 1 - P_ji) / 2."""
  chex.assert_rank(raw_BKK, 3)
  return (raw_BKK + 1 - raw_BKK.mT) / 2


def pair_win_rates(win_B: Array) -> Array:
  """Win rates of two answers against one another, `[B, 2]`: P and 1 - P."""
  chex.assert_rank(win_B, 1)
  return jnp.stack([win_B, 1 - win_B], 1)


def win_rate(win_BKK: Array, present_BK: Array) -> Array:
  """Mean probability to beat the group's answers, itself included (1/2), `[B, K]`.

  SPPO (Wu et al. 2024, arXiv:2405.00675) estimates P(y > policy) so.

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
  (Calandriello et al. 2024, arXiv:2403.08635). On logits of next tokens it is
  normalised token by token, which is not the mixture of the two laws of whole
  sequences; on whole answers (V of them) it is exact.

  Args:
    logits_CV: the policy's logits or log-probs; -inf where the policy is 0.
    ref_logits_CV: the reference's.
    share: the reference's exponent, in [0, 1]: 0 is the policy, 1 the reference.
      At an exponent of 0 an impossible token counts as any other.
  """
  chex.assert_equal_shape([logits_CV, ref_logits_CV])
  parts = _times(1 - share, logits_CV) + _times(share, ref_logits_CV)
  return jax.nn.log_softmax(parts)


def _times(power: float | Array, logits_CV: Array) -> Array:
  # Select before the product: 0 * -inf would be NaN.
  return power * jnp.where(power == 0, 0, logits_CV)


def wins_against(win_VV: Array, logp_V: Array) -> Array:
  """P(y > policy) of every answer y, `[V]`."""
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

  Paper: Munos et al. 2023, arXiv:2312.00886, Eq. not checked; beta is its tau.

  Args:
    logp_V: log-probabilities of the policy.
    ref_logp_V: of the reference, everywhere finite.
    win_VV: row beats column.
    beta: tie to ref; > 0.
    eta: size of the step; 0 < eta beta <= 1.

  Returns:
    Log-probabilities of the next policy.
  """
  mix_V = mixture(logp_V, ref_logp_V, eta * beta)
  return jax.nn.log_softmax(mix_V + eta * wins_against(win_VV, mix_V))


def sppo_step(logp_V: Array, win_VV: Array, eta: float | Array) -> Array:
  """One exact step of SPPO, multiplicative weights: policy' ~ policy exp(eta P).

  P is P(y > policy). The average of the iterates approaches the equilibrium of the
  game without a reference; the last iterate need not.

  Paper: Wu et al. 2024, arXiv:2405.00675, Eq. not checked.
  """
  return jax.nn.log_softmax(logp_V + eta * wins_against(win_VV, logp_V))


def exploitability(win_VV: Array, logp_V: Array) -> Array:
  """How well the best answer beats the policy: max P(y > policy) - 1/2; Nash: 0."""
  return wins_against(win_VV, logp_V).max() - 0.5


def regularised_gap(
  win_VV: Array, logp_V: Array, ref_logp_V: Array, beta: float | Array
) -> Array:
  """Duality gap of the game tied to a reference; 0 at its only equilibrium.

  The payoff is P(p > q) - beta KL(p || ref) + beta KL(q || ref). Against a policy the
  best reply is ref exp(P(y > policy) / beta) / Z, worth beta log Z.
  """
  chex.assert_equal_shape([logp_V, ref_logp_V])
  tilted_V = ref_logp_V + wins_against(win_VV, logp_V) / beta
  kl = (jnp.exp(logp_V) * (logp_V - ref_logp_V)).sum()
  return 2 * (beta * jax.nn.logsumexp(tilted_V) + beta * kl - 0.5)
