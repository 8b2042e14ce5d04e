"""BCO: binary classification of completions by implicit reward, single or in pairs."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State

_STATS = frozenset({token_stats.LOGP, token_stats.REF_LOGP})


def bco(beta: float = 0.1) -> Objective:
  """BCO: binary cross-entropy on thumbs-up and thumbs-down, with a reward shift.

  L = -log sigma(beta u - d)  for desirable completions,   -log sigma(d - beta u)  else,
  u = log-ratio, d the mean of beta u over all completions so far, these included.

  Paper: Jung et al. 2024, arXiv:2404.04656.
  Departs from the paper: d is the plain mean of all rewards, as in TRL, whose code is
    the author's; whether the paper averages the two classes' means first is not known
    (they differ when the classes are unbalanced). The weights for prompts that differ
    between the classes (UDM) are `bco_udm`. d is computed over the whole batch,
    independent of microbatches, and evaluation does not update it.
  Reduction: log-ratio summed over tokens; loss averaged over all rows, desirable and
    undesirable pooled. No gradient through d.

  Args:
    beta: tie to ref, per nat; > 0. TRL: 0.1.

  Returns:
    Objective; layout RATED; stats LOGP, REF_LOGP; columns desirable_BK; state mean
    (nats), count (completions).
    Terms: `bco`.
    Metrics: shift (nats), reward_chosen, logp_chosen over desirable rows,
    reward_rejected, logp_rejected over undesirable ones (nats), reward_accuracy
    (fraction of rows on the correct side of the shift).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=1, policy_equals_ref=True)
    >>> o = objectives.bco()
    >>> round(float(scored.evaluate(o, first_step, o.init()).loss), 4)  # log 2
    0.6931
  """
  pair = bco_pair(beta)

  def loss(scored: Scored, aux: Aux) -> Loss:
    desirable_B = scored.desirable_BK[:, 0] > 0
    reward_B = _rewards.rewards(scored, beta)[:, 0]
    gain_B = _gain(reward_B, aux.shared, desirable_B)
    loss_B = links.logistic(gain_B)
    metrics = _rewards.unpaired_metrics(scored, reward_B, desirable_B)
    metrics |= {
      "shift": scored.mean_B(jnp.broadcast_to(aux.shared, loss_B.shape)),
      "reward_accuracy": scored.mean_B((1 + jnp.sign(gain_B)) / 2),
    }
    return Loss({"bco": scored.mean_B(loss_B)}, metrics, loss_B)

  return pair._replace(
    name="bco",
    layout=Layout.RATED,
    columns=frozenset({"desirable_BK"}),
    loss=loss,
  )


def bco_pair(beta: float = 0.1) -> Objective:
  """BCO on pairs: the sum of its losses on the chosen and the rejected completion.

  Layout PAIR; stats LOGP, REF_LOGP; state and shift as `bco`. Terms: `bco_pair`. An
  upper bound of `dpo`'s loss for any shift; with the shift at 0 it is the biased NCA of
  the NCA paper.
  """
  _hparams.check("bco", "beta", beta, usual=0.1, gt=0)

  def init() -> State:
    return {"mean": jnp.zeros(()), "count": jnp.zeros(())}

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    batch = scored.mean_BK(_rewards.rewards(scored, beta))
    count = state["count"] + batch.weight
    step = (batch.total - batch.weight * state["mean"]) / jnp.where(count > 0, count, 1)
    new = {"mean": (state["mean"] + step).astype(state["mean"].dtype)}
    new["count"] = count.astype(state["count"].dtype)
    return Aux(shared=new["mean"]), new

  def loss(scored: Scored, aux: Aux) -> Loss:
    reward_BK = _rewards.rewards(scored, beta)
    chosen_B = links.logistic(_gain(reward_BK[:, 0], aux.shared, True))
    rejected_B = links.logistic(_gain(reward_BK[:, 1], aux.shared, False))
    loss_B = chosen_B + rejected_B
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    metrics |= {"shift": scored.mean_B(jnp.broadcast_to(aux.shared, loss_B.shape))}
    return Loss({"bco_pair": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="bco_pair",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=_STATS,
    loss=loss,
    prepare=prepare,
    init=init,
  )


def _gain(reward_B: Array, shift: Array, desirable: Array | bool) -> Array:
  """Reward minus shift, negated for undesirable completions."""
  return jnp.where(desirable, 1, -1) * (reward_B - shift)
