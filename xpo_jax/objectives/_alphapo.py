"""AlphaPO: SimPO with a power-transformed reward."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards, _simpo
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def alpha_reward(avg_logp: Array, alpha: float | Array) -> Array:
  """(1 - P^-alpha) / alpha, log P = `avg_logp`; log P itself at alpha = 0.

  Where P^-alpha would overflow it is continued by its tangent, as in
  `links.exponential` (in float32 from 284 nats per token on, at alpha = 0.25).
  """
  exponent = -alpha * avg_logp
  small = exponent < 1  # expm1 is accurate there
  grown = jnp.where(
    small, jnp.expm1(jnp.minimum(exponent, 1)), links.exponential(-exponent) - 1
  )
  is_log = jnp.asarray(alpha) == 0
  return jnp.where(is_log, avg_logp, -grown / jnp.where(is_log, 1, alpha))


def alphapo(beta: float = 2.5, gamma: float = 0.25, alpha: float = 0.25) -> Objective:
  """AlphaPO: SimPO whose reward is a power of the probability, not its logarithm.

  L = -log sigma(beta (r_w - r_l) - gamma),   r = (1 - exp(-alpha a)) / alpha
  with a the log-probability per token; alpha -> 0 gives r = a, SimPO.

  Paper: Gupta et al. 2025, arXiv:2501.03884.
  Departs from the paper: as in TRL, `gamma` is absolute. The reward of very improbable
    completions is continued by its tangent (see `alpha_reward`).
  Reduction: log-probability averaged over tokens; loss averaged over pairs.

  Args:
    beta: scale of the reward; > 0. Paper: tuned; 2.5 is SimPO's.
    gamma: target reward margin; >= 0. Paper: tuned; ratio 0.1 as SimPO's.
    alpha: exponent of the reward; any number; > 0 weighs improbable completions more, 0
      is SimPO. Paper: 0.25 for Mistral, as TRL reports it.

  Returns:
    Objective; layout PAIR; stats LOGP.
    Terms: `alphapo`.
    Metrics: reward_* (beta r; the margin before gamma), reward_accuracy (fraction),
    logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> halves = scored.from_sequence_logps(np.log([[0.5, 0.25]]), [[1, 1]])
    >>> o = objectives.alphapo(beta=1.0, alpha=1.0)  # r = 1 - 1/P: -1 and -3
    >>> float(scored.evaluate(o, halves).metrics["reward_margin"])
    2.0
  """
  _hparams.check("alphapo", "beta", beta, usual=2.5, gt=0)
  _hparams.check("alphapo", "gamma", gamma, usual=0.25, ge=0)
  _hparams.check("alphapo", "alpha", alpha, usual=0.25)
  simpo = _simpo.simpo(beta, gamma)

  def loss(scored: Scored, aux: Aux) -> Loss:
    reward_BK = alpha_reward(_rewards.avg_logp(scored), alpha)
    transformed = scored.replace(
      mask_BKT=None, logp_BKT=reward_BK[..., None], length_BK=jnp.ones_like(reward_BK)
    )
    out = simpo.loss(transformed, aux)
    metrics = out.metrics | _rewards.logp_metrics(scored)
    return Loss({"alphapo": out.terms["simpo"]}, metrics, out.per_example_B)

  return Objective(
    name="alphapo",
    hparams={"beta": beta, "gamma": gamma, "alpha": alpha},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
  )
