"""Robust DPO: an unbiased estimate of the DPO loss under flipped labels."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def robust_dpo(beta: float = 0.1, flip_rate: float = 0.1) -> Objective:
  """Robust DPO (rDPO): unbiased estimate of the clean DPO loss from noisy labels.

  L = [(1 - e) l(m) - e l(-m)] / (1 - 2 e),   m = beta (log-ratio_w - log-ratio_l)
  with l(m) = -log sigma(m) and e the fraction of flipped labels.

  Paper: Chowdhury et al. 2024, arXiv:2403.00409. Not in the survey.
  Departs from the paper: nothing. No authors' code was found; TRL's "robust" agrees. L
    falls without bound as m grows, its slope staying at least e / (1 - 2 e): on
    separable data, monitor the KL and stop early.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.
    flip_rate: the paper's epsilon, fraction of flipped labels; 0 <= e < 0.5. Paper:
      0.1. 0 gives DPO.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `robust_dpo`.
    Metrics: reward_* (nats), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion), as `dpo`.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> loss = scored.evaluate(objectives.robust_dpo(), first_step).loss
    >>> round(float(loss), 4)  # log 2 for any rate
    0.6931
  """
  _hparams.check("robust_dpo", "beta", beta, usual=0.1, gt=0)
  _hparams.check("robust_dpo", "flip_rate", flip_rate, usual=0.1, ge=0, lt=0.5)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    margin_B = reward_BK[:, 0] - reward_BK[:, 1]
    label_B = links.logistic(margin_B)
    flipped_B = links.logistic(-margin_B)
    noisy_B = (1 - flip_rate) * label_B - flip_rate * flipped_B
    loss_B = noisy_B / (1 - 2 * flip_rate)
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"robust_dpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="robust_dpo",
    hparams={"beta": beta, "flip_rate": flip_rate},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
