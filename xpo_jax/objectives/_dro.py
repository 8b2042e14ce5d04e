"""DRO-V: joint regression of policy and value on the rewards of single completions."""

import jax

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import masked, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def dro_half_square(
  reward_B: Array, value_B: Array, log_ratio_B: Array, beta: float | Array
) -> Array:
  """DRO's objective per row, (r - V - beta log-ratio)^2 / 2, differentiable."""
  return 0.5 * (reward_B - value_B - beta * log_ratio_B) ** 2


def dro(beta: float = 1.0) -> Objective:
  """DRO-V: regression of the reward of a completion on a value and a log-ratio.

  L = (r - sg(V) - beta lr)^2 / (2 beta)  +  (r - V - beta sg(lr))^2 / 2
  with lr the log-ratio of the completion and V(x) the value of the prompt. For data of
  any policy the optimum is the value beta log E_ref exp(r / beta) and the
  policy ref exp((r - value) / beta).

  Paper: Richemond et al. 2024, arXiv:2405.19107. Survey 3.6.2.
  Departs from the paper: one network with a scalar head, read where the first
    completion token is predicted (from the prompt alone); the paper's best networks are
    separate, with a value per token. No authors' code; a public one divides the
    log-ratio by the length by default, and has an option for the 1 / beta.
  Reduction: log-ratio summed over tokens; both terms averaged over rows. No gradient
    from the first term into V nor from the second into the policy. The 1 / beta is the
    paper's: the policy's gradient is -(r - V - beta lr) grad log pi at any beta.

  Args:
    beta: the paper's tau, tie to ref, units of the reward per nat; > 0. Paper: 1, for
      rewards normalised to mean 0 and variance 1 over the data; normalise likewise.

  Returns:
    Objective; layout RATED; stats LOGP, REF_LOGP, VALUE; columns reward_BK.
    Terms: `dro` (the policy's), `value`.
    Metrics: value, residual (r - V - beta lr), reward (implicit, beta lr), all in units
    of the reward.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> one = np.ones((1, 1, 1))  # reward 3 = value 1 + beta 1 * log-ratio 2
    >>> s = scored.from_token_logps(-one, one, -3 * one, value_BKT=one, reward_BK=[[3]])
    >>> float(scored.evaluate(objectives.dro(beta=1.0), s).loss)
    0.0
  """
  _hparams.check("dro", "beta", beta, usual=1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_B = scored.reward_BK[:, 0]
    value_B = masked.first(scored.value_BKT, scored.mask_BKT)[:, 0]
    log_ratio_B = _rewards.log_ratio(scored)[:, 0]
    sg = jax.lax.stop_gradient
    policy_B = dro_half_square(reward_B, sg(value_B), log_ratio_B, beta) / beta
    fit_B = dro_half_square(reward_B, value_B, sg(log_ratio_B), beta)
    terms = {"dro": scored.mean_B(policy_B), "value": scored.mean_B(fit_B)}
    metrics = {
      "value": scored.mean_B(value_B),
      "residual": scored.mean_B(reward_B - value_B - beta * log_ratio_B),
      "reward": scored.mean_B(beta * log_ratio_B),
    }
    return Loss(terms, metrics, policy_B + fit_B)

  stats = {token_stats.LOGP, token_stats.REF_LOGP, token_stats.VALUE}
  return Objective(
    name="dro",
    hparams={"beta": beta},
    layout=Layout.RATED,
    stats=frozenset(stats),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
