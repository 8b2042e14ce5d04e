"""RLOO: REINFORCE on whole completions, with a leave-one-out baseline."""

import jax.numpy as jnp

from xpo_jax.objectives import _grpo, _hparams, _reinforce, _rewards
from xpo_jax.ops import groups, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def rloo_advantages(
  scored: Scored,
  beta: float | Array | None = None,
  *,
  reward_range: tuple[float, float] | None = None,
) -> Array:
  """Leave-one-out advantages: R minus the mean R of the other completions, `[B, K]`.

  R = r - beta (log pi_old(y|x) - log pi_ref(y|x)): the KL penalty, k1 summed over
  tokens, belongs to the reward; no gradient should flow into it.

  Args:
    scored: with reward_BK; a beta needs old_logp_BKT and ref_logp_BKT too.
    beta: tie to ref, per nat; None for no tie.
    reward_range: r is clipped to it before the penalty: TRL's `reward_clip_range`.
  """
  if reward_range is not None:
    scored = scored.replace(reward_BK=jnp.clip(scored.reward_BK, *reward_range))
  reward_BK = _reinforce.penalised_reward(scored, beta)
  return groups.leave_one_out_advantage(reward_BK, scored.present_BK)


def rloo(beta: float | None = 0.03) -> Objective:
  """RLOO: REINFORCE with the mean reward of a prompt's other samples as baseline.

  L = - mean_i A_i log pi(y_i | x),   A_i = R_i - mean_{j != i} R_j,
  R = r - beta log(pi_old(y|x) / pi_ref(y|x)). A whole completion is one action. The
  baseline does not depend on y_i, so that the gradient is unbiased; A_i is K / (K - 1)
  times R_i minus the mean of all.

  Paper: Ahmadian et al. 2024, arXiv:2402.14740. Survey 3.8.3.
  Departs from the paper: nothing known; as there, no ratio and no clip, so that
    rollouts must come from the current policy. TRL clips the ratio of sequences,
    OpenRLHF that of tokens, with the KL penalty left out of the baseline: `policy_loss`
    has both, and `rloo_advantages` these advantages. TRL's default beta is 0.05.
  Reduction: log-probability summed over tokens; mean over a prompt's completions, mean
    over prompts. A prompt with fewer than 2 completions adds 0.

  Args:
    beta: tie to ref, per nat; > 0, or None for no tie: then neither ref_logp_BKT nor
      old_logp_BKT is needed. Paper: 0.03 (TL;DR), 0.10 (HH).

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, and old_logp_BKT unless beta is None.
    Terms: `rloo`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ).

  Raises:
    ValueError: beta out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps([[-2.0, -3.0]], [[4, 4]], reward_BK=[[1.0, 0.0]])
    >>> float(scored.evaluate(objectives.rloo(beta=None), s).loss)  # (2 - 3) / 2
    -0.5
  """
  _hparams.check_optional_beta("rloo", beta, usual=0.03)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    return Aux(rloo_advantages(scored, beta)), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    loss_BK = policy_loss.policy_gradient(_rewards.seq_logp(scored), aux.rows)
    loss_B = groups.mean(loss_BK, scored.present_BK)
    metrics = _grpo.reward_metrics(scored)
    return Loss({"rloo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="rloo",
    hparams={"beta": beta},
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=_reinforce.required_columns(beta),
    prepare=prepare,
    on_policy=True,
  )
