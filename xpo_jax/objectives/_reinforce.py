"""REINFORCE on whole completions, with the mean past reward as baseline."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import groups, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored, State


def penalised_reward(scored: Scored, beta: float | Array | None) -> Array:
  """R = r - beta log(pi_old(y|x) / pi_ref(y|x)), `[B, K]`; r where beta is None."""
  if beta is None:
    return scored.reward_BK
  rollout = scored.replace(logp_BKT=scored.old_logp_BKT)
  return scored.reward_BK - _rewards.rewards(rollout, beta)


def required_columns(beta: float | Array | None) -> frozenset[str]:
  """The data columns that `penalised_reward` reads."""
  old = () if beta is None else ("old_logp_BKT",)
  return frozenset({"reward_BK", *old})


def reinforce(beta: float | None = 0.03) -> Objective:
  """REINFORCE: policy gradient per completion, with the mean past reward as baseline.

  L = -(R - b) log pi(y | x),   R = r - beta log(pi_old(y|x) / pi_ref(y|x)),
  b the mean over past batches of their mean R. A whole completion is one action.

  Paper: Ahmadian et al. 2024, arXiv:2402.14740; after Williams 1992 (not on arXiv).
    Survey 3.8.3 (as RLOO).
  Departs from the paper: nothing known; K = 1 there, any K here. In the first batch b =
    0. No ratio and no clip: rollouts must come from the current policy.
  Reduction: log-probability summed over tokens; mean over a prompt's completions, mean
    over prompts. No gradient through R and b.

  Args:
    beta: tie to ref, per nat; > 0, or None for no tie: then neither ref_logp_BKT nor
      old_logp_BKT is needed. Paper: 0.03 (TL;DR), 0.10 (HH).

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, and old_logp_BKT unless beta is None; state: the baseline as a Mean.
    Terms: `reinforce`.
    Metrics: reward (r), baseline (units of the reward).

  Raises:
    ValueError: beta out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> o, s = objectives.reinforce(None), scored.from_sequence_logps
    >>> first = scored.evaluate(o, s([[-2.0]], [[4]], reward_BK=[[3.0]]), o.init())
    >>> next_one = s([[-2.0]], [[4]], reward_BK=[[4.0]])  # the baseline is 3 by now
    >>> float(first.loss), float(scored.evaluate(o, next_one, first.state).loss)
    (6.0, 2.0)
  """
  _hparams.check_optional_beta("reinforce", beta, usual=0.03)

  def init() -> State:
    return Mean(jnp.zeros(()), jnp.zeros(()))

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    reward_BK = penalised_reward(scored, beta)
    batch = scored.mean_BK(reward_BK)
    batch_mean = Mean(
      batch.value, jnp.sign(batch.weight)
    )  # weight 0 if all rows are filler
    batch_mean = jax.tree.map(lambda x, old: x.astype(old.dtype), batch_mean, state)
    aux = Aux(reward_BK - state.value, state.value)
    return aux, jax.tree.map(jnp.add, state, batch_mean)

  def loss(scored: Scored, aux: Aux) -> Loss:
    loss_BK = policy_loss.policy_gradient(_rewards.seq_logp(scored), aux.rows)
    loss_B = groups.mean(loss_BK, scored.present_BK)
    baseline_B = jnp.broadcast_to(aux.shared, loss_B.shape)
    metrics = {"reward": scored.mean_BK(scored.reward_BK)}
    metrics |= {"baseline": scored.mean_B(baseline_B)}
    return Loss({"reinforce": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="reinforce",
    hparams={"beta": beta},
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=required_columns(beta),
    prepare=prepare,
    on_policy=True,
    init=init,
  )
