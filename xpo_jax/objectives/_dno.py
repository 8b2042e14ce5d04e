"""DNO: logistic regression of log-ratio margins on win rates, in self-play."""

import jax

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def dno(beta: float = 0.1) -> Objective:
  """DNO: logistic regression of the margin on the win-rate difference of two samples.

  L = -p log sigma(m) - (1 - p) log sigma(-m),   p = sigma(P_y - P_y')
  with m = beta (log-ratio_y - log-ratio_y') and P_y = P(y > previous policy), which is
  also the reference. At the minimum m = P_y - P_y': the next policy is
  proportional to policy exp(P_y / beta), the exact step of SPPO.

  Paper: Rosset et al. 2024, arXiv:2404.03715; beta is its eta. Survey 3.11.
  Departs from the paper: nothing known; there is no public code. Its practical form,
    DNO-Prct, treats pairs ranked far apart among samples, and a stronger model's
    completions, as certain preferences: that is `dpo` on them.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to the previous round's policy, in win probability per nat; > 0. Paper: no
      value seen; 0.1 is DPO's.

  Returns:
    Objective; layout PAIR, in any order: the loss is the same with the two swapped;
    stats LOGP, REF_LOGP; columns reward_BK, the win rates: over K samples of a prompt,
    counting a sample as a draw with itself (`Feedback.include_self`) scales P - 1/2 by
    (K - 1) / K.
    Terms: `dno`.
    Metrics: reward_* (beta times log-ratio), reward_accuracy (fraction), logp_chosen,
    logp_rejected (nats per completion); chosen is column 0.

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> loss = scored.evaluate(objectives.dno(), first_step).loss
    >>> round(float(loss), 4)  # no margin yet, so log 2 for any win rates
    0.6931
  """
  _hparams.check("dno", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    margin_B = reward_BK[:, 0] - reward_BK[:, 1]
    p_other_B = jax.nn.sigmoid(scored.reward_BK[:, 1] - scored.reward_BK[:, 0])
    loss_B = links.smoothed_logistic(margin_B, p_other_B)
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"dno": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="dno",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
    reward_kind="win_rates",
  )
