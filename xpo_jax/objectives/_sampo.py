"""SamPO: DPO on equally many sampled tokens of both completions."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _dpo, _hparams, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def down_sample(mask_BKT: Array, row_B: Array, key: Array) -> Array:
  """Samples as many tokens of each completion as the shortest has, none twice.

  Args:
    mask_BKT: 1 on completion tokens.
    row_B: global row numbers, folded into the key.
    key: PRNG key.

  Returns:
    `[B, K, T]`, 1 where a token was drawn; the shortest completion keeps all tokens.
  """
  shape = mask_BKT.shape[1:]
  uniform_BKT = jax.vmap(
    lambda row: jax.random.uniform(jax.random.fold_in(key, row), shape)
  )(row_B)
  uniform_BKT = jnp.where(mask_BKT > 0, uniform_BKT, jnp.inf)
  rank_BKT = jnp.argsort(jnp.argsort(uniform_BKT, -1), -1)
  shortest_B11 = mask_BKT.sum(-1).min(-1)[:, None, None]
  return jnp.where(rank_BKT < shortest_B11, mask_BKT, 0)


def sampo(beta: float = 0.1) -> Objective:
  """SamPO: DPO with the longer completion down-sampled to the shorter one's length.

  L = -log sigma(beta (v_w - v_l))
  with v the log-ratio of as many tokens of a completion as the shorter one has, drawn
  without replacement, again at every step.

  Paper: Lu et al. 2024, arXiv:2406.10957.
  Departs from the paper: nothing. The authors' code draws once for the policy and again
    for the reference, so that the margin is noise at the first step: not copied, one
    draw serves both, as in the paper's sum of log-ratios.
  Reduction: log-ratio summed over drawn tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper's script: 0.1 (0.5 for Pythia).

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP; reads tokens; draws random numbers.
    Terms: `sampo`.
    Metrics: those of `dpo`; rewards of the drawn tokens, log-probs of all.

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> import jax
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> out = scored.evaluate(objectives.sampo(), first_step, key=jax.random.key(0))
    >>> round(float(out.loss), 4)  # no margin yet, for any draw: log 2
    0.6931
  """
  _hparams.check("sampo", "beta", beta, usual=0.1, gt=0)
  dpo = _dpo.dpo(beta)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    key = _hparams.check_key("sampo", key)
    return Aux(rows=down_sample(scored.mask_BKT, scored.row_B, key)), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = dpo.loss(scored.replace(mask_BKT=aux.rows), Aux())
    metrics = out.metrics | _rewards.logp_metrics(scored)
    return Loss({"sampo": out.terms["dpo"]}, metrics, out.per_example_B)

  return Objective(
    name="sampo",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    reads_tokens=True,
    prepare=prepare,
  )
