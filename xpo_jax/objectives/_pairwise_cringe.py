"""Pairwise CRINGE: CRINGE on pairs, gated by the margin."""

import jax

from xpo_jax.objectives import _cringe, _hparams, _rewards
from xpo_jax.ops import masked, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def pairwise_cringe(
  alpha: float = 1.0,
  margin: float = 0.0,
  temperature: float = 1.0,
  k: int = 1,
  detach_gate: bool = False,
) -> Objective:
  """Pairwise CRINGE: binary CRINGE on both sides of a pair, with a soft gate.

  L = g (-log p(y_w) + alpha sum_t softplus(s_t - u_t))
  g = sigma((margin - (log p(y_w) - log p(y_l))) / temperature)
  with s_t the logits of the rejected tokens and u_t those of their contrast tokens, as
  in `cringe`.

  Paper: Xu et al. 2023, arXiv:2312.16682. Survey 3.5.2.
  Departs from the paper: no authors' code was found, and whether gradient flows through
    the gate is not known. By default it does, and widening the gap then also lowers the
    loss by closing the gate, more strongly for a larger loss: see `detach_gate`.
  Reduction: log-probabilities, likelihood and contrast summed over tokens; loss
    averaged over pairs.

  Args:
    alpha: weight of the contrast; >= 0. Paper: per task, 0.005 is quoted (unverified).
    margin: the paper's b, nats: the gap at which the gate is 1/2. Paper: per task, -10
      is quoted (unverified).
    temperature: the paper's tau, nats; > 0. Paper: per task, 10 is quoted (unverified).
    k: number of contrast tokens to draw from; 1 draws nothing. Paper: per task.
    detach_gate: no gradient through the gate. Paper: not known.

  Returns:
    Objective; layout PAIR; stats LOGP, contrast_tokens(k); draws random numbers if k >
    1.
    Terms: `pairwise_cringe`.
    Metrics: gate (fraction), contrast, logp_chosen, logp_rejected (nats per
    completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> o, tokens = objectives.pairwise_cringe(alpha=0.0), np.zeros((1, 2, 1), int)
    >>> zero = np.zeros((1, 2, 1, 4))  # equal sides: a gate of 1/2 before -log 1/4
    >>> s = scored.from_logits(zero, tokens, tokens + 1, stats=o.stats)
    >>> round(float(scored.evaluate(o, s).loss), 4)  # log 2
    0.6931
  """
  name = "pairwise_cringe"
  _hparams.check(name, "alpha", alpha, usual=1, ge=0)
  _hparams.check(name, "margin", margin, usual=0)
  _hparams.check(name, "temperature", temperature, usual=1, gt=0)
  stat = token_stats.contrast_tokens(k)

  def loss(scored: Scored, aux: Aux) -> Loss:
    logp_BK = _rewards.seq_logp(scored)
    contrast_BKT = _cringe.token_contrast(scored, aux.rows, k, detach=False)
    contrast_B = masked.sum_T(contrast_BKT, scored.mask_BKT)[:, 1]
    gap_B = logp_BK[:, 0] - logp_BK[:, 1]
    gate_B = jax.nn.sigmoid((margin - gap_B) / temperature)
    gate_B = jax.lax.stop_gradient(gate_B) if detach_gate else gate_B
    loss_B = gate_B * (alpha * contrast_B - logp_BK[:, 0])
    metrics = _rewards.logp_metrics(scored) | {
      "gate": scored.mean_B(gate_B),
      "contrast": scored.mean_B(contrast_B),
    }
    return Loss({name: scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name=name,
    hparams={
      "alpha": alpha,
      "margin": margin,
      "temperature": temperature,
      "k": k,
      "detach_gate": detach_gate,
    },
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, stat}),
    loss=loss,
    prepare=_cringe.prepare_contrast(name, k),
  )
