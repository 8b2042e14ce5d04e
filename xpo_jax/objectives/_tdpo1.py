"""TDPO1: DPO with the difference of the sequential KLs in the margin."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, masked, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def sequential_kl(scored: Scored) -> Array:
  """KL(ref || policy) summed over the positions of a completion, nats, `[B, K]`."""
  return masked.sum_T(scored.ref_kl_BKT, scored.mask_BKT)


def tdpo_rewards(scored: Scored, beta: float | Array) -> Array:
  """TDPO's implicit reward, beta (log-ratio + sequential KL), nats, `[B, K]`."""
  return beta * (_rewards.log_ratio(scored) + sequential_kl(scored))


def tdpo1(beta: float = 0.1) -> Objective:
  """TDPO1: token-level DPO with the sequential forward KL in the reward.

  L = -log sigma(beta (log-ratio_w - log-ratio_l) - beta (D_l - D_w))
  with D_y = sum_t KL(ref(.|s_t) || policy(.|s_t)) over the whole vocabulary.

  Paper: Zeng et al. 2024, arXiv:2404.11999, Eq. 14 and 15. Survey 3.4.2.
  Departs from the paper: nothing. The authors' code takes log(softmax) of the reference
    and gives NaN where a probability underflows: not copied. Some public copies detach
    both KLs, which removes the method's gradient.
  Reduction: log-ratio and KL summed over tokens; loss averaged over pairs. Gradient
    flows through both KLs, so that D_w is raised and D_l lowered (see `tdpo2`).

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP, REF_KL.
    Terms: `tdpo1`.
    Metrics: reward_* (nats; of `tdpo_rewards`, KL included), reward_accuracy
    (fraction), seq_kl_chosen, seq_kl_rejected, logp_chosen, logp_rejected (nats per
    completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> round(float(scored.evaluate(objectives.tdpo1(), first_step).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("tdpo1", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = tdpo_rewards(scored, beta)
    loss_B = links.logistic(reward_BK[:, 0] - reward_BK[:, 1])
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    kl_BK = sequential_kl(scored)
    metrics |= {
      "seq_kl_chosen": scored.mean_B(kl_BK[:, 0]),
      "seq_kl_rejected": scored.mean_B(kl_BK[:, 1]),
    }
    return Loss({"tdpo1": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="tdpo1",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP, token_stats.REF_KL}),
    loss=loss,
  )
