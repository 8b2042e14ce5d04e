"""SLiC-HF: sequence likelihood calibration."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _nll, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def slic(delta: float = 1.0, weight: float = 0.1) -> Objective:
  """SLiC-HF: hinge loss on the gap of two log-likelihoods, plus the NLL of a target.

  L = max(0, delta - log pi(y_w|x) + log pi(y_l|x)) - lambda log pi(y_ref|x)

  Paper: Zhao et al. 2023, arXiv:2305.10425, Eq. 4. Survey 3.3.
  Departs from the paper: the target y_ref is the chosen completion (the paper tries the
    SFT target and the best candidate and finds little between them); another target is
    `slic(weight=0)` and `nll("sequence_sum")` as two `types.AuxLoss`. Whether the paper
    sums or averages over tokens is not known: this is the sum. TRL's DPO "hinge" is
    another loss, with a reference (`rso`). In one public code the two terms differ in
    shape and broadcast: not copied.
  Reduction: log-probability summed over tokens; both terms averaged over pairs.

  Args:
    delta: gap at which the hinge is satisfied, nats; > 0. Paper: 1.0.
    weight: the paper's lambda; >= 0. Paper: value not found; a public code takes 0.1.

  Returns:
    Objective; layout PAIR; stats LOGP.
    Terms: `slic`, `nll`.
    Metrics: reward_* (the log-likelihoods, nats), reward_accuracy (fraction),
    logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> pair = scored.from_sequence_logps([[-2.0, -2.25]], [[4, 4]])
    >>> terms = scored.evaluate(objectives.slic(weight=0.5), pair).terms
    >>> {name: float(term) for name, term in terms.items()}  # 1 - 0.25, 0.5 * 2
    {'slic': 0.75, 'nll': 1.0}
  """
  _hparams.check("slic", "delta", delta, usual=1, gt=0)
  _hparams.check("slic", "weight", weight, usual=0.1, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    logp_BK = _rewards.seq_logp(scored)
    loss_B = jnp.maximum(delta - logp_BK[:, 0] + logp_BK[:, 1], 0)
    metrics = _rewards.reward_metrics(scored, logp_BK) | _rewards.logp_metrics(scored)
    return Loss({"slic": scored.mean_B(loss_B)}, metrics, loss_B)

  hinge = Objective(
    name="slic",
    hparams={"delta": delta, "weight": weight},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
  )
  return _nll.with_nll(hinge, weight, "sequence_sum")
