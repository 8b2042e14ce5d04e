"""Corrects a policy gradient for a sampler that is not the policy of the trainer.

Completions are drawn from a distribution of their own: at another temperature, cut off
by top-k or top-p, with weights or arithmetic of another precision. Each token then has
three log-probs: of the policy that is trained, of the policy before the update as the
trainer computes it (`old_logp_BKT`), and of what was drawn from (`sampler_logp_BKT`).
`corrected` weighs every token's gradient by min(pi_old / pi_sampler, cap), truncated
importance sampling, and leaves out tokens whose ratio is outside of bounds.

Truncated importance sampling: Ionides 2008; for rollouts Yao et al. 2025, "Your
Efficient RL Framework Secretly Brings You Off-Policy RL Training". Masking, and ratios
of whole completions: Liu et al. 2025, "When Speed Kills Stability", and verl's rollout
correction. None of them is on arXiv.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from xpo_jax.ops import masked, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored

COLUMNS = frozenset({"old_logp_BKT", "sampler_logp_BKT"})
Level = Literal["token", "sequence"]


def sampler_ratio(scored: Scored, level: Level = "token") -> Array:
  """pi_old / pi_sampler of each token, `[B, K, T]`; 1 on padding.

  Args:
    scored: with old_logp_BKT and sampler_logp_BKT.
    level: "token", each token's own; "sequence", that of the whole completion at each
      of its tokens. The latter is the exact importance weight of a completion; the
      former ignores that the prefix was drawn from the sampler too, and varies less.
  """
  mask_BKT = scored.mask_BKT
  gap_BKT = masked.zero_padding(scored.old_logp_BKT - scored.sampler_logp_BKT, mask_BKT)
  if level == "sequence":
    gap_BKT = gap_BKT.sum(-1, keepdims=True)
    gap_BKT = masked.zero_padding(jnp.broadcast_to(gap_BKT, mask_BKT.shape), mask_BKT)
  return policy_loss.ratio(gap_BKT, jnp.zeros_like(gap_BKT))


def scale_gradient(x: Array, weight: Array) -> Array:
  """`x`, whose gradient is multiplied by a weight."""
  fixed = jax.lax.stop_gradient(x)
  return fixed + jax.lax.stop_gradient(weight) * (x - fixed)


def leave_out(scored: Scored, keep_BKT: Array) -> Scored:
  """Removes tokens from a record: they carry no loss and count in no denominator.

  A completion without any token left is not present.
  """
  mask_BKT = scored.mask_BKT * keep_BKT
  any_BK = jnp.where(
    (masked.length(mask_BKT) > 0) | (masked.length(scored.mask_BKT) == 0), 1, 0
  )
  return scored.replace(
    mask_BKT=mask_BKT,
    length_BK=masked.length(mask_BKT),
    present_BK=scored.present_BK * any_BK,
  )


def corrected(
  objective: Objective,
  *,
  cap: float | None = 2.0,
  bounds: tuple[float, float] | None = None,
  level: Level = "token",
) -> Objective:
  """Makes an objective that corrects its gradient for the sampler.

  The loss of a policy gradient is a sum over tokens, and multiplying the gradient of
  each token's log-prob by its weight is multiplying that token's loss: one wrapper
  does it for every objective. A KL term in the loss is weighted too, since its
  expectation is over the same tokens (verl weighs the policy loss alone); values are
  not. Advantages are the objective's own, of all that was sampled. The loss itself is
  reported without weights: only its gradient is meaningful.

  Args:
    objective: of layout SAMPLED, a policy gradient: on-policy, or one that reads
      old_logp_BKT.
    cap: C of min(pi_old / pi_sampler, C); > 0, and `math.inf` for no truncation. None:
      no weights. Yao et al. and verl: 2.
    bounds: tokens whose ratio is not within (lowest, highest) carry no loss; None: all
      do.
    level: of the ratio; see `sampler_ratio`.

  Returns:
    Objective; further columns old_logp_BKT, sampler_logp_BKT; reads tokens. Further
    metrics: sampler_kl (log pi_sampler - log pi_old, nats per token), sampler_ratio
    (mean over tokens), sampler_truncated, sampler_left_out (fractions of tokens).

  Raises:
    ValueError: an objective that is no policy gradient, or that corrects for a share of
      a teacher by itself; cap or bounds out of range, or neither.
  """
  check(cap, bounds)
  policy_gradient = objective.on_policy or "old_logp_BKT" in objective.columns
  if objective.layout is not Layout.SAMPLED or not policy_gradient:
    raise ValueError(
      f"{objective.name} is no policy gradient on samples (layout "
      f"{objective.layout.name}, columns {', '.join(sorted(objective.columns))}); an "
      "importance weight corrects those alone"
    )
  if objective.teacher_share > 0:
    raise ValueError(
      f"{objective.name} weighs samples of a mixture with the teacher "
      f"({objective.teacher_share} of it) by itself; a second weight would count that "
      "twice"
    )

  def loss(scored: Scored, aux: Aux) -> Loss:
    ratio_BKT = sampler_ratio(scored, level)
    above_BKT, keep_BKT = jnp.zeros_like(ratio_BKT), jnp.ones_like(ratio_BKT)
    changed = scored
    if cap is not None:
      above_BKT = jnp.where(ratio_BKT > cap, 1.0, 0.0)
      weighted_BKT = scale_gradient(scored.logp_BKT, jnp.minimum(ratio_BKT, cap))
      changed = changed.replace(logp_BKT=weighted_BKT)
    if bounds is not None:
      lowest, highest = bounds
      within_BKT = (ratio_BKT >= lowest) & (ratio_BKT <= highest)
      keep_BKT = jnp.where(within_BKT, 1.0, 0.0)
      changed = leave_out(changed, keep_BKT)
    out = objective.loss(changed, aux)
    tokens_BKT = {
      "sampler_kl": scored.sampler_logp_BKT - scored.old_logp_BKT,
      "sampler_ratio": ratio_BKT,
      "sampler_truncated": above_BKT,
      "sampler_left_out": 1 - keep_BKT,
    }
    metrics = {n: policy_loss.token_mean(scored, x) for n, x in tokens_BKT.items()}
    return out.replace(metrics=out.metrics | metrics)

  return objective._replace(
    loss=loss, columns=objective.columns | COLUMNS, reads_tokens=True
  )


def check(cap: float | None, bounds: tuple[float, float] | None) -> None:
  """Refuses a cap or bounds out of range, and neither.

  Raises:
    ValueError: see `corrected`.
  """
  if cap is None and bounds is None:
    raise ValueError(
      "cap and bounds are None, so nothing is corrected; give a cap such as 2.0, or "
      "bounds such as (0.5, 2.0)"
    )
  if cap is not None and not cap > 0:
    raise ValueError(f"cap is {cap}; allowed: > 0, math.inf for no truncation, or None")
  if bounds is not None and not 0 <= bounds[0] < bounds[1]:
    raise ValueError(
      f"bounds is {bounds}; allowed: (lowest, highest), 0 <= lowest < highest, or None"
    )
