"""InfoNCA: cross-entropy between softmaxes of rewards and of implicit rewards."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import ranking, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def reward_targets(
  scored: Scored, alpha: float | Array, lead: float | Array = 0.0
) -> Array:
  """softmax(reward / alpha) over present columns, `[B, K]`; 0 on absent ones.

  Args:
    scored: with `reward_BK`.
    alpha: temperature of the rewards.
    lead: added to the best reward (the first on ties); a public code has 0.01.
  """
  best_BK = ranking.rank(scored.reward_BK, scored.present_BK) == 1
  reward_BK = scored.reward_BK + jnp.where(best_BK, lead, 0)
  return ranking.softmax(reward_BK / alpha, scored.present_BK)


def infonca(beta: float = 0.01, alpha: float = 1.0, lead: float = 0.0) -> Objective:
  """InfoNCA: cross-entropy from a softmax of rewards to one of implicit rewards.

  L = - sum_i p_i log softmax(beta u)_i,   p = softmax(r / alpha),   u = log-ratios

  On a pair, as alpha -> 0 (a one-hot target), this is `dpo`.

  Paper: Chen et al. 2024, arXiv:2402.05369.
  Departs from the paper: nothing. The authors' code adds 0.01 to the best reward
    (`lead`), and its comment and its code use alpha inversely to each other; here
    rewards are divided by it.
  Reduction: log-ratio summed over tokens; loss averaged over lists. A list of fewer
    than two completions gives 0; equal rewards have equal p.

  Args:
    beta: tie to ref, per nat; > 0. Authors' code: 0.01.
    alpha: temperature of the rewards, in their unit; > 0. Authors' code: 1.
    lead: added to the best reward; >= 0. Paper: 0; its code 0.01.

  Returns:
    Objective; layout RANKED; stats LOGP, REF_LOGP; columns reward_BK.
    Terms: `infonca`.
    Metrics: of the best against the worst completion, see `ranking.metrics`.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> same = toy.scored(K=2, policy_equals_ref=True)
    >>> round(float(scored.evaluate(objectives.infonca(), same).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("infonca", "beta", beta, usual=0.01, gt=0)
  _hparams.check("infonca", "alpha", alpha, usual=1, gt=0)
  _hparams.check("infonca", "lead", lead, usual=0, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    target_BK = reward_targets(scored, alpha, lead)
    loss_B = ranking.cross_entropy(reward_BK, target_BK, scored.present_BK)
    metrics = ranking.metrics(scored, reward_BK)
    return Loss({"infonca": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="infonca",
    hparams={"beta": beta, "alpha": alpha, "lead": lead},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
