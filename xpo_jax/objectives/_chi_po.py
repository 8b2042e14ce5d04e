"""chi-PO: DPO regularised by the chi-square divergence in addition to the KL."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import divergences, links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def chi_po(beta: float = 0.1, largest_reward: float = 1.0) -> Objective:
  """chi-PO: DPO with the link phi(t) = t + log t, against overoptimisation.

  L = -log sigma(clip(beta phi(ratio_w) - beta phi(ratio_l), -2 R, 2 R))
  with ratio = policy / ref: the reward grows linearly in the ratio, so that a large
  reward needs a smaller change of the policy. The gradient is 0 for margins beyond 2 R.

  Paper: Huang et al. 2024, arXiv:2407.13399 (from public summaries).
  Departs from the paper: nothing known; no authors' code was found. Where exp overflows
    the link is continued by its tangent (`links.exponential`). Gradients vanish for
    margins below -2 R as well as above 2 R: large ratios at the start of training are
    not corrected.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref; > 0. Paper: no value seen; 0.1 is DPO's.
    largest_reward: R, rewards lie within [0, R]; > 0. Paper: no value seen.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `chi_po`.
    Metrics: reward_* (beta (phi - 1), which is 0 at ratio 1), reward_accuracy
    (fraction), logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> round(float(scored.evaluate(objectives.chi_po(), first_step).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("chi_po", "beta", beta, usual=0.1, gt=0)
  _hparams.check("chi_po", "largest_reward", largest_reward, usual=1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    u_BK = _rewards.log_ratio(scored)
    # phi - 1 is the slope of chi-square / 2 plus that of the KL.
    tilt_BK = divergences.CHI_SQUARE.slope(u_BK) + divergences.REVERSE_KL.slope(u_BK)
    reward_BK = beta * tilt_BK
    margin_B = reward_BK[:, 0] - reward_BK[:, 1]
    bound = 2 * largest_reward
    loss_B = links.logistic(jnp.clip(margin_B, -bound, bound))
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"chi_po": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="chi_po",
    hparams={"beta": beta, "largest_reward": largest_reward},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
