"""ReMax: REINFORCE with the greedy completion's reward as baseline."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _reinforce, _rewards
from xpo_jax.ops import groups, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored, State


def remax(beta: float | None = 0.05) -> Objective:
  """ReMax: REINFORCE with the reward of the greedy completion as baseline.

  L = -(R(y) - r(greedy)) log pi(y | x),   R = r - beta log(pi_old(y|x) / pi_ref(y|x))
  The baseline does not depend on the sample, so that the gradient is unbiased.
  Column 0 of K holds the greedy completion of the same policy, the others samples.

  Paper: Li et al. 2023, arXiv:2310.10505.
  Departs from the paper: nothing known. The authors' code gives token t gamma^(n - t)
    of the difference (gamma 0.99, one discount at the last token too), clipped to +-5,
    and the KL penalty of token t alone, and averages over tokens: `returns` has these
    as arguments, and verl accumulates the penalty as here.
  Reduction: log-probability summed over tokens; mean over a prompt's samples, mean over
    prompts. No gradient through rewards; a prompt without column 0 adds 0.

  Args:
    beta: tie to ref, per nat; > 0, or None for no tie: then neither ref_logp_BKT nor
      old_logp_BKT is needed. Paper: value not found; the authors' script for
      Llama-2: 0.05.

  Returns:
    Objective; layout SAMPLED, K >= 2; stats LOGP, and REF_LOGP unless beta is None;
    columns reward_BK, and old_logp_BKT unless beta is None.
    Terms: `remax`.
    Metrics: reward (r of the samples), greedy_reward.

  Raises:
    ValueError: beta out of range (when built); a batch of K = 1 (when evaluated).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> logp, length, reward = [[-1.0, -2.0]], [[4, 4]], [[0.5, 2.0]]
    >>> s = scored.from_sequence_logps(logp, length, reward_BK=reward)
    >>> float(scored.evaluate(objectives.remax(None), s).loss)  # (2 - 0.5) 2
    3.0
  """
  _hparams.check_optional_beta("remax", beta, usual=0.05)

  def sampled(scored: Scored) -> Array:
    """1 on samples whose prompt has a greedy completion, `[B, K]`."""
    if scored.present_BK.shape[1] < 2:
      raise ValueError(
        "remax needs K >= 2, batch has K=1; put the greedy completion in column 0 and "
        "samples in the others"
      )
    return (scored.present_BK * scored.present_BK[:, :1]).at[:, 0].set(0)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    reward_BK = _reinforce.penalised_reward(scored, beta)
    return Aux(reward_BK - scored.reward_BK[:, :1]), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    loss_BK = policy_loss.policy_gradient(_rewards.seq_logp(scored), aux.rows)
    loss_B = groups.mean(loss_BK, sampled(scored))
    greedy_B = scored.present_BK[:, 0] * scored.weight_B
    greedy = (jnp.where(greedy_B > 0, scored.reward_BK[:, 0], 0) * greedy_B).sum()
    samples = scored.replace(present_BK=sampled(scored))
    metrics = {"reward": samples.mean_BK(scored.reward_BK)}
    metrics |= {"greedy_reward": Mean(greedy, greedy_B.sum())}
    return Loss({"remax": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="remax",
    hparams={"beta": beta},
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=_reinforce.required_columns(beta),
    prepare=prepare,
    column0_source="greedy",
    on_policy=True,
  )
