"""DiscoPOP (LRML): the best loss found by a language-model search."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import discopop_losses, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def discopop(beta: float = 0.05, tau: float = 0.05) -> Objective:
  """DiscoPOP (LRML): a margin-dependent blend of logistic and exponential loss.

  L = (1 - s) (-log sigma(m)) + s exp(-m),   s = sigma(m / tau),
  m = beta (log-ratio_w - log-ratio_l)
  At m = 0 the slope is positive, (1 - log 2) / (4 tau) - 3/4, +0.78 at tau 0.05, and
  the nearest minimum is at m near -0.12. Small steps from the reference converge there,
  with the rejected completion preferred; steps past the local maximum learn the
  preference.

  Paper: Lu et al. 2024, arXiv:2406.08414, Eq. 27.
  Departs from the paper: nothing. The search's own code left beta out of s, which is
    tau = beta; the paper corrects it with tau = 0.05. s exp(-m) is computed as one
    exponential: the authors' code gives 0 * inf for very negative margins. The other
    losses of the search are in `discopop_losses`.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.05.
    tau: width of the blend, nats of m; 0 < tau <= 1. Paper: 0.05.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `discopop`.
    Metrics: reward_* (nats), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> loss = scored.evaluate(objectives.discopop(), first_step).loss
    >>> round(float(loss), 4)  # (log 2 + 1) / 2
    0.8466
  """
  _hparams.check("discopop", "beta", beta, usual=0.05, gt=0)
  _hparams.check("discopop", "tau", tau, usual=0.05, gt=0, le=1)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    loss_B = discopop_losses.lrml(reward_BK[:, 0] - reward_BK[:, 1], tau)
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"discopop": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="discopop",
    hparams={"beta": beta, "tau": tau},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
