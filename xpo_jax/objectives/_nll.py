"""Negative log-likelihood with named reductions, alone or added to another loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored


class Reduction(NamedTuple):
  """How an NLL is averaged.

  Attributes:
    name: key in `REDUCTIONS`.
    logp: the log-probability of each completion, `[B, K]`.
    over_tokens: whether the batch mean is over tokens or over completions.
  """

  name: str
  logp: Callable[[Scored], Array]
  over_tokens: bool


REDUCTIONS = {
  "token_mean": Reduction("token_mean", _rewards.seq_logp, True),
  "sequence_sum": Reduction("sequence_sum", _rewards.seq_logp, False),
  "sequence_mean": Reduction("sequence_mean", _rewards.avg_logp, False),
}


def nll(reduction: str | Reduction = "token_mean") -> Objective:
  """NLL: negative log-likelihood of the demonstration, or of the chosen completion.

  L = - sum_t log pi(y_t|s_t) / n
  over all tokens of the batch, with n their number (`token_mean`) or the number of
  prompts (`sequence_sum`); `sequence_mean` is the mean over prompts of their own means.

  Paper: Pang et al. 2024 (iterative RPO: DPO plus this term), arXiv:2404.19733,
    Eq. 1.
  Departs from the paper: nothing; it divides the term by the completion's length
    (`sequence_mean`). TRL and SimPO's code use `token_mean`, CPO and SLiC write
    `sequence_sum`: the three differ by factors of the completion length, so that a
    coefficient does not transfer from one to another.
  Reduction: as named. Reads column 0 of any layout.

  Args:
    reduction: token_mean, sequence_sum or sequence_mean. Paper: sequence_mean.

  Returns:
    Objective; layout DEMO; stats LOGP.
    Terms: `nll`.
    Metrics: logp_chosen (nats per completion).

  Raises:
    ValueError: no such reduction (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> two = scored.from_sequence_logps([[-6.0], [-1.0]], [[3], [1]])
    >>> [
    ...   float(scored.evaluate(objectives.nll(r), two).loss)
    ...   for r in ("token_mean", "sequence_sum", "sequence_mean")
    ... ]
    [1.75, 3.5, 1.5]
  """
  reduction = _hparams.choice("nll", "reduction", reduction, REDUCTIONS)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    weight_B = scored.weight_B * scored.present_BK[:, 0]
    nll_B = -reduction.logp(scored)[:, 0]
    size_B = (
      scored.length_BK[:, 0] if reduction.over_tokens else jnp.ones_like(weight_B)
    )
    mean = Mean((nll_B * weight_B).sum(), (size_B * weight_B).sum())
    logp_B = _rewards.seq_logp(scored)[:, 0]
    metrics = {"logp_chosen": Mean((logp_B * weight_B).sum(), weight_B.sum())}
    return Loss({"nll": mean}, metrics, None if reduction.over_tokens else nll_B)

  return Objective(
    name="nll",
    hparams={"reduction": reduction.name},
    layout=Layout.DEMO,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
  )


def with_nll(
  preference: Objective, weight: float | Array, reduction: str | Reduction
) -> Objective:
  """Adds `weight` times `nll(reduction)` to a preference loss over rows."""
  likelihood = nll(reduction)

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = preference.loss(scored, aux)
    extra = likelihood.loss(scored, Aux())
    mean = extra.terms["nll"]
    rows_B = extra.per_example_B
    if rows_B is not None:
      rows_B = out.per_example_B + weight * rows_B
    terms = out.terms | {"nll": Mean(weight * mean.total, mean.weight)}
    return Loss(terms, out.metrics, rows_B)

  return preference._replace(loss=loss)
