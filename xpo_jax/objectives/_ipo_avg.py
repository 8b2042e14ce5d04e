"""IPO on log-ratios averaged per token, as in most public codes."""

from xpo_jax.objectives import _hparams, _ipo, _rewards
from xpo_jax.ops import masked, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def ipo_avg(beta: float = 0.1) -> Objective:
  """IPO, averaged: squared loss of the gap of per-token log-ratios.

  L = (a_w - a_l - 1 / (2 beta))^2,   a = log-ratio / tokens of the completion

  Paper: Azar et al. 2023, arXiv:2310.12036 (its tau is beta); the average is not in it
    (Eq. 17 sums, see `ipo`): TRL reports that the authors recommended it. Survey 3.3.6.
  Departs from the paper: the average. TRL, torchtune, LLaMA-Factory and HALOs take it.
    HALOs divides by the tokens whose log-ratio is not 0, hence 0/0 at policy = ref: not
    copied. The target is per token: at beta = 0.1 it is 5 nats a token, unreachable, so
    that the loss is nearly linear; the beta equivalent to that of `ipo` grows with the
    length.
  Reduction: log-ratio averaged over tokens on each side; loss averaged over pairs.

  Args:
    beta: the target is 1 / (2 beta) nats per token; > 0. TRL: 0.1.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `ipo_avg`.
    Metrics: reward_* (beta times nats per token), reward_accuracy (fraction),
    logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps([[8.0, 0.0]], [[4, 1]], [[0.0, 0.0]])
    >>> float(scored.evaluate(objectives.ipo_avg(beta=0.25), s).loss)  # (8/4 - 2)^2
    0.0
  """
  _hparams.check("ipo_avg", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    average_BK = masked.per_token(_rewards.log_ratio(scored), scored.length_BK)
    loss_B = _ipo.ipo_distance(average_BK[:, 0] - average_BK[:, 1], beta)
    metrics = _rewards.reward_metrics(scored, beta * average_BK)
    metrics |= _rewards.logp_metrics(scored)
    return Loss({"ipo_avg": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="ipo_avg",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
