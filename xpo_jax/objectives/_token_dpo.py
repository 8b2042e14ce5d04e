"""Token-level DPO: the DPO loss as a sum of token credits."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, masked, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def token_dpo(beta: float = 0.1) -> Objective:
  """Token DPO ("from r to Q*"): logistic regression on sums of token credits.

  L = -log sigma(sum_t c_w,t - sum_t c_l,t),   c_t = beta log(pi(y_t|s_t)/ref(y_t|s_t))
  The same value as `dpo`, in another interpretation: at the optimum c_t is the
  advantage r_t + V*(s_t+1) - V*(s_t) of the token-level MDP (`token_mdp`), the shaped
  reward and not the reward; V*(s_0), common to both completions, cancels in the margin.

  Paper: Rafailov et al. 2024, arXiv:2404.12358. Survey 3.4.1.
  Departs from the paper: nothing. No code of its own; its experiments use DPO's.
  Reduction: credit summed over tokens, EOS included (a mean would not telescope); loss
    averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1, DPO's.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP; reads tokens. The credit is
    `objectives.token_rewards`.
    Terms: `token_dpo`.
    Metrics: reward_chosen, reward_rejected, reward_margin (nats), reward_accuracy
    (fraction), logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)  # no credit: log 2
    >>> round(float(scored.evaluate(objectives.token_dpo(), first_step).loss), 4)
    0.6931
  """
  _hparams.check("token_dpo", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    credit_BKT = _rewards.token_rewards(scored, beta)
    reward_BK = masked.sum_T(credit_BKT, scored.mask_BKT)
    loss_B = links.logistic(reward_BK[:, 0] - reward_BK[:, 1])
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"token_dpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="token_dpo",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    reads_tokens=True,
  )
