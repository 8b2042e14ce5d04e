"""Nash-MD: policy gradient against a mixture of the policy and the reference."""

import jax

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import groups, masked
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def nash_md_surrogate(scored: Scored, beta: float | Array) -> Array:
  """Surrogate with the gradient of Nash-MD, `[B, K]`: one advantage per completion.

  -(P - 1/2 - beta log-ratio) log pi(y | x), no gradient through the first factor.
  """
  gain_BK = scored.reward_BK - 0.5 - beta * _rewards.log_ratio(scored)
  return -jax.lax.stop_gradient(gain_BK) * _rewards.seq_logp(scored)


def nash_md_token_local(scored: Scored, beta: float | Array) -> Array:
  """TRL's estimator: each token is penalised by its own log-ratio only, `[B, K]`.

  sum_t (beta sg(d_t) - (P - 1/2)) log pi_t, d_t = log pi_t - log pi_ref,t. It ignores
  the effect of a token on later log-ratios: equal to `nash_md` for one token only.
  """
  log_ratio_BKT = jax.lax.stop_gradient(scored.logp_BKT - scored.ref_logp_BKT)
  cost_BKT = beta * log_ratio_BKT - (scored.reward_BK - 0.5)[..., None]
  return masked.sum_T(cost_BKT * scored.logp_BKT, scored.mask_BKT)


def nash_md(beta: float = 0.008) -> Objective:
  """Nash-MD-PG: policy gradient on the win rate against a mixture, with a KL penalty.

  L = -mean_i sg(P_i - 1/2 - beta log-ratio_i) log pi(y_i | x)
  with y_i drawn from the policy and P_i = P(y_i > y') the probability to beat y', drawn
  from `preference_games.mixture` of policy and reference. It targets the equilibrium of
  the KL-regularised game; preferences may be cyclic.

  Paper: Munos et al. 2023, arXiv:2312.00886; beta is its tau. Survey 3.11.
  Departs from the paper: nothing known. Its beta, the reference's share of the mixture
    (best 0.125 to 0.375), is set where y' is sampled: share 0 is self-play, 1 the best
    response to the reference. TRL draws y' from the mixture token by token, takes P
    from a reward model (so that no cycle can occur), beta 0.1, and penalises the KL
    token by token: `nash_md_token_local`.
  Reduction: log-ratio, log-prob summed over tokens; mean over a prompt's completions,
    over prompts. The gradient is unbiased on samples of the current policy.

  Args:
    beta: tie to ref, in win probability per nat; > 0. Paper: 0.008.

  Returns:
    Objective; layout SAMPLED (the policy's completions; y' has no column, since it has
    no gradient); stats LOGP, REF_LOGP; columns reward_BK, the win rates P_i. For
    self-play against the other samples set `Feedback.include_self` to False: True
    scales P - 1/2 by (K - 1) / K.
    Terms: `nash_md`.
    Metrics: win_rate, kl (nats per completion, k1).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps([[-2.0]], [[4]], [[-2.0]], reward_BK=[[0.75]])
    >>> float(scored.evaluate(objectives.nash_md(), s).loss)  # -(3/4 - 1/2) * -2
    0.5
  """
  _hparams.check("nash_md", "beta", beta, usual=0.008, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    present_BK = scored.present_BK
    log_ratio_BK = _rewards.log_ratio(scored)
    loss_B = groups.mean(nash_md_surrogate(scored, beta), present_BK)
    metrics = {
      "win_rate": scored.mean_BK(groups.zero_absent(scored.reward_BK, present_BK)),
      "kl": scored.mean_BK(groups.zero_absent(log_ratio_BK, present_BK)),
    }
    return Loss({"nash_md": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="nash_md",
    hparams={"beta": beta},
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=frozenset({"reward_BK"}),
    on_policy=True,
    reward_kind="win_rates",
  )
