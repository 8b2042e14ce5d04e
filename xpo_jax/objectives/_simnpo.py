"""SimNPO: NPO on average log-probabilities, without a reference."""

from xpo_jax.objectives import _hparams, _npo, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def simnpo(beta: float = 2.5, gamma: float = 0.0) -> Objective:
  """SimNPO: NPO on the average log-probability, without a reference.

  L = -(2 / beta) log sigma(-beta a - gamma)   on undesirable completions only
  with a the log-probability per token.

  Paper: Fan et al. 2024, arXiv:2410.07163; the form is that of the authors' model
    cards.
  Departs from the paper: nothing. The authors' code takes beta (-a - gamma): its gamma
    is this one divided by beta. Their code for MUSE feeds raw logits to the sigmoid:
    not copied. Retain terms have data of their own, as for `npo`.
  Reduction: log-probability averaged over tokens; loss averaged over the undesirable
    rows.

  Args:
    beta: scale, per nat per token; > 0. Paper: 2.5 (TOFU forget05), 4.5 (forget10), 0.7
      (MUSE), 5.5 (WMDP).
    gamma: margin; >= 0. Paper: 0 (3 on MUSE News).

  Returns:
    Objective; layout RATED; stats LOGP; columns desirable_BK.
    Terms: `simnpo`.
    Metrics: reward_rejected (beta times nats per token), logp_rejected (nats per
    completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> sure = scored.from_sequence_logps([[0.0]], [[8]], desirable_BK=[[0]])
    >>> o = objectives.simnpo(beta=2.0)
    >>> round(float(scored.evaluate(o, sure).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("simnpo", "beta", beta, usual=2.5, gt=0)
  _hparams.check("simnpo", "gamma", gamma, usual=0, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_B = beta * _rewards.avg_logp(scored)[:, 0]
    loss_B = 2 / beta * links.logistic(-reward_B - gamma)
    forget = _npo.forget_rows(scored)
    metrics = {
      "reward_rejected": forget.mean_B(reward_B),
      "logp_rejected": forget.mean_B(_rewards.seq_logp(scored)[:, 0]),
    }
    return Loss({"simnpo": forget.mean_B(loss_B)}, metrics)

  return Objective(
    name="simnpo",
    hparams={"beta": beta, "gamma": gamma},
    layout=Layout.RATED,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
    columns=frozenset({"desirable_BK"}),
  )
