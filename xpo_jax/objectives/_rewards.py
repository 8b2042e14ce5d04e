"""Implicit rewards, and the metrics that all objectives report under the same names.

`reward_margin`, `reward_chosen`, `reward_rejected` are in the objective's own reward
(its beta included), `reward_accuracy` is the fraction of pairs ranked correctly (a tie
counts one half, so that policy = ref gives 1/2), `logp_chosen` and `logp_rejected` are
sums over the completion's tokens in nats.
"""

import jax.numpy as jnp

from xpo_jax.ops import masked, token_stats
from xpo_jax.types import Array, Mean, Scored, TokenStat


def token_rewards(scored: Scored, beta: float | Array = 1.0) -> Array:
  """Credit per token, beta (log pi - log pi_ref), `[B, K, T]`; 0 on padding.

  At the optimum this is r + V(s') - V(s), the shaped reward, not the reward itself.

  Paper: Rafailov et al. 2024, "From r to Q*", arXiv:2404.12358.

  Raises:
    ValueError: a record of summed log-probabilities, which has no tokens.
  """
  if scored.mask_BKT is None:
    raise ValueError(
      "token_rewards reads tokens, and a record of summed log-probs has none; build it "
      "with scored.from_token_logps or from_logits"
    )
  log_ratio_BKT = scored.logp_BKT - scored.ref_logp_BKT
  return beta * masked.zero_padding(log_ratio_BKT, scored.mask_BKT)


def stats(beta: float | Array | None) -> frozenset[TokenStat]:
  """LOGP, and REF_LOGP where there is a tie to the reference (beta is not None)."""
  tie = () if beta is None else (token_stats.REF_LOGP,)
  return frozenset({token_stats.LOGP, *tie})


def log_ratio(scored: Scored) -> Array:
  """log pi(y|x) - log pi_ref(y|x), summed over tokens, nats, `[B, K]`."""
  # Differences first: the difference of two long sums would lose precision.
  return masked.sum_T(scored.logp_BKT - scored.ref_logp_BKT, scored.mask_BKT)


def rewards(scored: Scored, beta: float | Array) -> Array:
  """Implicit reward beta log(pi/pi_ref) of each completion, nats, `[B, K]`."""
  return beta * log_ratio(scored)


def seq_logp(scored: Scored) -> Array:
  """log pi(y|x), summed over tokens, nats, `[B, K]`."""
  return masked.sum_T(scored.logp_BKT, scored.mask_BKT)


def avg_logp(scored: Scored) -> Array:
  """log pi(y|x) per token, nats, `[B, K]`; 0 for an empty completion."""
  return masked.per_token(seq_logp(scored), scored.length_BK)


def logp_metrics(scored: Scored) -> dict[str, Mean]:
  """Mean log-probabilities of the chosen and of the rejected completions."""
  logp_BK = seq_logp(scored)
  return {
    "logp_chosen": scored.mean_B(logp_BK[:, 0]),
    "logp_rejected": scored.mean_B(logp_BK[:, 1]),
  }


def reward_metrics(scored: Scored, reward_BK: Array) -> dict[str, Mean]:
  """Mean rewards of chosen and rejected completions, their margin, and the accuracy."""
  margin_B = reward_BK[:, 0] - reward_BK[:, 1]
  return {
    "reward_chosen": scored.mean_B(reward_BK[:, 0]),
    "reward_rejected": scored.mean_B(reward_BK[:, 1]),
    "reward_margin": scored.mean_B(margin_B),
    "reward_accuracy": scored.mean_B((1 + jnp.sign(margin_B)) / 2),
  }


def by_label(
  scored: Scored, what: str, x_B: Array, desirable_B: Array
) -> dict[str, Mean]:
  """Means of `x` over desirable (`what_chosen`) and undesirable rows."""
  sides = {"chosen": desirable_B, "rejected": ~desirable_B}
  return {
    f"{what}_{side}": scored.replace(
      weight_B=jnp.where(member_B, scored.weight_B, 0)
    ).mean_B(x_B)
    for side, member_B in sides.items()
  }


def unpaired_metrics(
  scored: Scored, reward_B: Array, desirable_B: Array
) -> dict[str, Mean]:
  """Mean rewards and log-probs of column 0, for desirable and undesirable rows."""
  reward = by_label(scored, "reward", reward_B, desirable_B)
  return reward | by_label(scored, "logp", seq_logp(scored)[:, 0], desirable_B)
