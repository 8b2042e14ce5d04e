"""ARPO: CPO with an adaptive penalty on the rejected completion."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _nll, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def rejection(scored: Scored, eta: float | Array, relax: float | Array = 1.0) -> Array:
  """ARPO's tau: min(1, relax exp(eta |a_w - a_l|) - 1), `[B]`, with its gradient."""
  avg_BK = _rewards.avg_logp(scored)
  # Cap the exponent where tau reaches 1, so that exp does not overflow.
  exponent_B = jnp.minimum(
    eta * jnp.abs(avg_BK[:, 0] - avg_BK[:, 1]), jnp.log(2.0 / relax)
  )
  return relax * jnp.exp(exponent_B) - 1


def arpo(
  beta: float = 0.1,
  weight: float = 1.0,
  eta: float = 0.4,
  relax: float = 0.9,
  reduction: str | _nll.Reduction = "sequence_sum",
) -> Objective:
  """ARPO: CPO with a weaker penalty on rejected completions close to the chosen one.

  L = -log sigma(beta (log pi(y_w|x) - tau log pi(y_l|x))) + w NLL(y_w),
  tau = min(1, c exp(eta |a_w - a_l|) - 1), a the log-probability per token.

  Paper: Xu et al. 2024 (X-ALMA), arXiv:2410.03115.
  Departs from the paper: taken from the authors' code, whose relaxation c (0.9, so that
    tau is -0.1 for equal completions) could not be checked against the text; c = 1
    gives tau = 0 there. As in the code the gradient flows through tau. Where tau is 1
    this is `cpo`, the name of the code's file.
  Reduction: log-probability summed over tokens (averaged in tau); losses averaged over
    pairs; the NLL by `reduction` (see `cpo`; the code's is token_mean).

  Args:
    beta: scale of the log-likelihoods, per nat; > 0. Paper's code: 0.1.
    weight: weight of the NLL term; >= 0. Paper's code: 1.
    eta: growth rate of tau, per nat per token; > 0. Paper's code: 0.4.
    relax: the factor c; 0 < c <= 2. Paper's code: 0.9.
    reduction: of the NLL, see `nll`.

  Returns:
    Objective; layout PAIR; stats LOGP.
    Terms: `arpo`, `nll`.
    Metrics: those of `cpo`, and rejection (tau, a factor).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> alike = scored.from_sequence_logps([[-2.0, -4.0]], [[4, 8]])  # -0.5 per token
    >>> out = scored.evaluate(objectives.arpo(), alike)
    >>> round(float(out.metrics["rejection"]), 4)
    -0.1
  """
  _hparams.check("arpo", "beta", beta, usual=0.1, gt=0)
  _hparams.check("arpo", "weight", weight, usual=1, ge=0)
  _hparams.check("arpo", "eta", eta, usual=0.4, gt=0)
  _hparams.check("arpo", "relax", relax, usual=0.9, gt=0, le=2)
  nll_reduction = _hparams.choice("arpo", "reduction", reduction, _nll.REDUCTIONS)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    logp_BK = _rewards.seq_logp(scored)
    tau_B = rejection(scored, eta, relax)
    margin_B = beta * (logp_BK[:, 0] - tau_B * logp_BK[:, 1])
    loss_B = links.logistic(margin_B)
    metrics = _rewards.reward_metrics(scored, beta * logp_BK)
    metrics |= _rewards.logp_metrics(scored) | {"rejection": scored.mean_B(tau_B)}
    return Loss({"arpo": scored.mean_B(loss_B)}, metrics, loss_B)

  preference = Objective(
    name="arpo",
    hparams={
      "beta": beta,
      "weight": weight,
      "eta": eta,
      "relax": relax,
      "reduction": nll_reduction.name,
    },
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
  )
  return _nll.with_nll(preference, weight, nll_reduction)
