"""LD-DPO: DPO that down-weights the excess tokens of the longer completion."""

import jax.numpy as jnp

from xpo_jax.objectives import _dpo, _hparams, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def down_weighted(scored: Scored, alpha: float | Array) -> Scored:
  """Scales the log-probs past the shorter completion's length by `alpha`.

  Applies to policy and reference; restore one by `scored.replace` for codes that scale
  only the other.
  """
  shortest_B11 = scored.length_BK.min(-1)[:, None, None]
  common_BKT = jnp.cumsum(scored.mask_BKT, -1) <= shortest_B11
  factor_BKT = jnp.where(common_BKT, 1, alpha)
  ref_BKT = scored.ref_logp_BKT
  return scored.replace(
    logp_BKT=factor_BKT * scored.logp_BKT,
    ref_logp_BKT=None if ref_BKT is None else factor_BKT * ref_BKT,
  )


def ld_dpo(beta: float = 0.1, alpha: float = 0.5) -> Objective:
  """LD-DPO: DPO with the excess tokens of the longer completion weighted by alpha.

  L = -log sigma(beta (v_w - v_l)),   v = p + alpha q
  with p the log-ratio of a completion's first n tokens, q that of the rest, and n the
  length of the shorter completion; alpha = 1 is `dpo`.

  Paper: Liu et al. 2024, arXiv:2409.06411.
  Departs from the paper: nothing. Two public codes do not scale the reference's excess
    tokens, so that the margin is not 0 at the first step, and one counts positions from
    the start of the prompt: not copied.
  Reduction: weighted log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.
    alpha: weight of the excess tokens; 0 <= alpha <= 1. Paper: tuned; 0.5 in TRL's
      index.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP; reads tokens.
    Terms: `ld_dpo`.
    Metrics: those of `dpo`; rewards with weighted excess tokens, log-probs unweighted.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> round(float(scored.evaluate(objectives.ld_dpo(), first_step).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("ld_dpo", "beta", beta, usual=0.1, gt=0)
  _hparams.check("ld_dpo", "alpha", alpha, usual=0.5, ge=0, le=1)
  dpo = _dpo.dpo(beta)

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = dpo.loss(down_weighted(scored, alpha), aux)
    metrics = out.metrics | _rewards.logp_metrics(scored)
    return Loss({"ld_dpo": out.terms["dpo"]}, metrics, out.per_example_B)

  return Objective(
    name="ld_dpo",
    hparams={"beta": beta, "alpha": alpha},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    reads_tokens=True,
  )
