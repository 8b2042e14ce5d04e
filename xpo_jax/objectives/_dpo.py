"""Direct Preference Optimization, and its label-smoothed form."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def dpo(beta: float = 0.1, label_smoothing: float = 0.0) -> Objective:
  """DPO: logistic regression on the difference of two log-ratios.

  L = -(1 - e) log sigma(m) - e log sigma(-m),   m = beta (log-ratio_w - log-ratio_l)
  with e the label smoothing; e > 0 is conservative DPO (cDPO).

  Paper: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7. Survey 3.3. cDPO: E. Mitchell,
    "A note on DPO with noisy preferences", 2023 (not on arXiv), Eq. 3.
  Departs from the paper: nothing. TRL from 0.29 on ignores `label_smoothing` here; the
    authors' code and this one apply it. The paper trains at learning rate 1e-6, the
    authors' configuration file at 5e-7.
  Reduction: log-ratio summed over tokens (a mean over tokens is another method, and a
    known bug); loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1 (0.5 on TL;DR).
    label_smoothing: probability that a label is flipped; 0 <= e < 0.5. Paper: 0. The
      note recommends none; at e > 0 the gradient vanishes at m = log((1 - e) / e).

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `dpo`.
    Metrics: reward_chosen, reward_rejected, reward_margin (nats), reward_accuracy
    (fraction), logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> loss = scored.evaluate(objectives.dpo(beta=0.1), first_step).loss
    >>> round(float(loss), 4)  # no margin yet, so log 2
    0.6931
  """
  _hparams.check("dpo", "beta", beta, usual=0.1, gt=0)
  _hparams.check("dpo", "label_smoothing", label_smoothing, usual=0, ge=0, lt=0.5)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = _rewards.rewards(scored, beta)
    margin_B = reward_BK[:, 0] - reward_BK[:, 1]
    loss_B = links.smoothed_logistic(margin_B, label_smoothing)
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"dpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="dpo",
    hparams={"beta": beta, "label_smoothing": label_smoothing},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
