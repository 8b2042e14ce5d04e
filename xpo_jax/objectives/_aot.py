"""AOT: stochastic dominance of the policy's margins over the reference's."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def partner(own_B: Array, other_B: Array, weight_B: Array, row_B: Array) -> Array:
  """The value of `other` with the same rank as each row's value in `own`, `[B]`.

  Filler rows (weight 0) are not matched and get 0. Ties rank by `row_B`, so that the
  order of the batch does not matter.
  """

  def order(x_B: Array) -> Array:
    return jnp.lexsort((row_B, jnp.where(weight_B > 0, x_B, jnp.inf)))

  rank_B = jnp.argsort(order(own_B))
  return jnp.where(weight_B > 0, other_B[order(other_B)][rank_B], 0)


def aot(beta: float = 0.01, label_smoothing: float = 0.0) -> Objective:
  """AOT: logistic loss between the sorted margins of policy and reference.

  L = mean_i f(beta (g_i - h_i)),   f(m) = -(1 - e) log sigma(m) - e log sigma(-m)
  with g_i the i-th smallest log pi(y_w|x) - log pi(y_l|x) of the batch, and h_i the
  i-th smallest of the same under the reference, whichever pair it belongs to.

  Paper: Melnyk et al. 2024, arXiv:2406.05882.
  Departs from the paper: nothing known. Public codes sort within each device's
    microbatch; here the whole batch is sorted, independent of microbatches.
  Reduction: log-probability summed over tokens; loss averaged over pairs. `prepare`
    sorts and gives each row its matched h, which has no gradient.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.01.
    label_smoothing: e, the probability that a label is flipped; 0 <= e < 0.5. Paper: 0.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `aot`.
    Metrics: those of `dpo`, with each pair's own reference.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> round(float(scored.evaluate(objectives.aot(), first_step).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("aot", "beta", beta, usual=0.01, gt=0)
  _hparams.check("aot", "label_smoothing", label_smoothing, usual=0, ge=0, lt=0.5)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    own_B = _difference(_rewards.seq_logp(scored))
    ref_B = _difference(_rewards.seq_logp(scored.replace(logp_BKT=scored.ref_logp_BKT)))
    return Aux(rows=partner(own_B, ref_B, scored.weight_B, scored.row_B)), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    margin_B = beta * (_difference(_rewards.seq_logp(scored)) - aux.rows)
    loss_B = links.smoothed_logistic(margin_B, label_smoothing)
    metrics = _rewards.reward_metrics(scored, _rewards.rewards(scored, beta))
    metrics |= _rewards.logp_metrics(scored)
    return Loss({"aot": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="aot",
    hparams={"beta": beta, "label_smoothing": label_smoothing},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset(),
    prepare=prepare,
  )


def _difference(x_BK: Array) -> Array:
  return x_BK[:, 0] - x_BK[:, 1]
