"""EXO: reverse KL from the policy's softmax over completions to a target."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import ranking, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def exo_divergence(reward_BK: Array, log_target_BK: Array, present_BK: Array) -> Array:
  """sum_k p_k (log p_k - log target_k), p = softmax of the rewards, nats, `[B]`.

  Only present columns count. The target need not sum to 1: the authors' code takes
  log-probabilities (0, -10) for a pair.
  """
  prob_BK = ranking.softmax(reward_BK, present_BK)
  cross_BK = jnp.where(present_BK > 0, prob_BK * log_target_BK, 0)
  return -ranking.cross_entropy(reward_BK, prob_BK, present_BK) - cross_BK.sum(1)


def exo(beta: float = 0.1, label_smoothing: float = 1e-3) -> Objective:
  """EXO on pairs: reverse KL, mode-seeking like the optimum of RLHF (DPO covers mass).

  L = q log(q / (1 - e)) + (1 - q) log((1 - q) / e),
  q = sigma(beta (log-ratio_w - log-ratio_l)), e the label smoothing

  Paper: Ji et al. 2024, arXiv:2402.00856, Eq. 16, for pairs. Not in the survey.
  Departs from the paper: nothing known; TRL's exo_pair agrees. The authors' code has
    the unnormalised target (0, -10) (see `exo_divergence`) and ignores its own
    `label_smooth`; it scores at the sampling temperature, 0.8. The gradient vanishes
    for large margins of either sign: badly misranked pairs are hardly corrected. Lists:
    `exo_list`.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1 (IMDb), 0.5 (HH).
    label_smoothing: e, the target probability of the rejected completion; 0 < e < 0.5
      (at 0 the loss is infinite). Paper: 1e-3.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `exo`.
    Metrics: reward_* (nats), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion), as `dpo`.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> o = objectives.exo(label_smoothing=0.1)
    >>> round(float(scored.evaluate(o, first_step).loss), 4)  # -log(4 * 0.9 * 0.1) / 2
    0.5108
  """
  _hparams.check("exo", "beta", beta, usual=0.1, gt=0)
  _hparams.check("exo", "label_smoothing", label_smoothing, usual=1e-3, gt=0, lt=0.5)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    target_K = jnp.stack([jnp.log1p(-label_smoothing), jnp.log(label_smoothing)])
    target_BK = jnp.broadcast_to(target_K, reward_BK.shape)
    loss_B = exo_divergence(reward_BK, target_BK, scored.present_BK)
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"exo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="exo",
    hparams={"beta": beta, "label_smoothing": label_smoothing},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
