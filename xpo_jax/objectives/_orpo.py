"""ORPO: SFT and an odds-ratio penalty in one loss."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards, _sft
from xpo_jax.ops import token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def log_odds(avg_logp: Array) -> Array:
  """log(P / (1 - P)) of a probability given as its logarithm, which is < 0.

  Log-probabilities are clipped to at most -(machine epsilon): closer values cannot be
  distinguished, and at 0 the odds are infinite.
  """
  a = jnp.minimum(avg_logp, -jnp.finfo(avg_logp.dtype).eps)
  # log(1 - exp(a)): each form where it is accurate, with a safe input elsewhere, since
  # the gradient of the unused form could be NaN.
  near_zero = a > -jnp.log(2.0)
  upper = jnp.log(-jnp.expm1(jnp.where(near_zero, a, -1.0)))
  lower = jnp.log1p(-jnp.exp(jnp.where(near_zero, -1.0, a)))
  return a - jnp.where(near_zero, upper, lower)


def odds_ratio(weight: float = 0.1) -> Objective:
  """The odds-ratio term of `orpo` alone: -weight log sigma(log odds ratio).

  Layout PAIR; stats LOGP. Terms: `odds_ratio`.
  """
  _hparams.check("orpo", "weight", weight, usual=0.1, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = log_odds(_rewards.avg_logp(scored))
    loss_B = -weight * jax.nn.log_sigmoid(reward_BK[:, 0] - reward_BK[:, 1])
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"odds_ratio": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="odds_ratio",
    hparams={"weight": weight},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
  )


def orpo(weight: float = 0.1) -> Objective:
  """ORPO: SFT on the chosen completion plus an odds-ratio penalty.

  L = L_SFT - lambda log sigma(log odds(y_w) - log odds(y_l)),   odds = P / (1 - P)
  with log P the log-probability per token.

  Paper: Hong et al. 2024, arXiv:2403.07691, Eq. 3, 4 and 7. Survey 3.7.
  Departs from the paper: L_SFT is the token mean over chosen completions of the batch.
    The authors' code and TRL count the prompt's tokens too, LLaMA-Factory averages per
    example first. The authors' mask counts one pad token: not copied.
  Reduction: log P averaged over tokens. Two denominators: `sft` per token, `odds_ratio`
    per pair.

  Args:
    weight: the paper's lambda; >= 0. Paper: 0.1 (Mistral), 0.2 (Llama-2).

  Returns:
    Objective; layout PAIR; stats LOGP.
    Terms: `sft`, `odds_ratio`.
    Metrics: reward_* (log odds), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion).

  Raises:
    ValueError: weight < 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = scored.from_sequence_logps([[-4.0, -2.0]], [[8, 4]])  # -0.5 per token
    >>> terms = scored.evaluate(objectives.orpo(weight=1.0), same).terms
    >>> {name: round(float(term), 4) for name, term in terms.items()}
    {'sft': 0.5, 'odds_ratio': 0.6931}
  """
  nll = _sft.sft()
  odds = odds_ratio(weight)

  def loss(scored: Scored, aux: Aux) -> Loss:
    ratio = odds.loss(scored, aux)
    return Loss(nll.loss(scored, aux).terms | ratio.terms, ratio.metrics)

  return odds._replace(name="orpo", loss=loss)
