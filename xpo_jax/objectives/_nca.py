"""NCA: noise contrastive alignment, which keeps the chosen completion likely."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _infonca, _rewards
from xpo_jax.ops import groups, ranking, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored

_STATS = frozenset({token_stats.LOGP, token_stats.REF_LOGP})


def nca_loss(reward_BK: Array, target_BK: Array, present_BK: Array) -> Array:
  """-sum_i p_i log sigma(r_i) - mean_i log sigma(-r_i) over present columns, `[B]`.

  Args:
    reward_BK: implicit rewards, beta times log-ratio.
    target_BK: p, which sums to 1.
    present_BK: absent columns do not count; a list of fewer than two completions gives
      0.
  """
  up_BK = target_BK * jax.nn.log_sigmoid(reward_BK)
  down_B = groups.mean(jax.nn.log_sigmoid(-reward_BK), present_BK)
  loss_B = -groups.total(up_BK, present_BK) - down_B
  return jnp.where(groups.count(present_BK) > 1, loss_B, 0)


def nca(beta: float = 0.01) -> Objective:
  """NCA on pairs: a finite target for the chosen reward, not only a margin.

  L = -log sigma(beta u_w) - 1/2 log sigma(-beta u_w) - 1/2 log sigma(-beta u_l),
  u = log-ratio of a completion. The minimum in u_w is at sigma(beta u_w) = 2/3.

  Paper: Chen et al. 2024, arXiv:2402.05369.
  Departs from the paper: nothing. The authors' "biasedNCA" drops u_w from the noise
    term: that is `bco_pair` with its shift at 0. For lists: `nca_list`.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Authors' code: 0.01.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `nca`.
    Metrics: reward_* (nats), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> round(float(scored.evaluate(objectives.nca(), first_step).loss), 4)  # 2 log 2
    1.3863
  """
  _hparams.check("nca", "beta", beta, usual=0.01, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    target_BK = jnp.zeros_like(reward_BK).at[:, 0].set(1)
    loss_B = nca_loss(reward_BK, target_BK, jnp.ones_like(reward_BK))
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"nca": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="nca",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=_STATS,
    loss=loss,
  )


def nca_list(beta: float = 0.01, alpha: float = 1.0, lead: float = 0.0) -> Objective:
  """NCA on lists with rewards, p = softmax(r / alpha); hyperparameters as in `infonca`.

  Layout RANKED; stats LOGP, REF_LOGP; columns reward_BK. Terms: `nca_list`.
  """
  _hparams.check("nca_list", "beta", beta, usual=0.01, gt=0)
  _hparams.check("nca_list", "alpha", alpha, usual=1, gt=0)
  _hparams.check("nca_list", "lead", lead, usual=0, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    target_BK = _infonca.reward_targets(scored, alpha, lead)
    loss_B = nca_loss(reward_BK, target_BK, scored.present_BK)
    metrics = ranking.metrics(scored, reward_BK)
    return Loss({"nca_list": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="nca_list",
    hparams={"beta": beta, "alpha": alpha, "lead": lead},
    layout=Layout.RANKED,
    stats=_STATS,
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
