"""SFT: supervised fine-tuning."""

from xpo_jax.objectives import _nll
from xpo_jax.types import Aux, Loss, Objective, Scored


def sft() -> Objective:
  """SFT: negative log-likelihood of the demonstration, per token.

  L = - sum_t log pi(y_t|s_t) / n
  over all n tokens of the batch's demonstrations.

  Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155.
  Departs from the paper: nothing known.
  Reduction: `nll` with `token_mean`: one mean over all completion tokens of the batch,
    so that a long completion weighs more than a short one and accumulation is exact.
    Reads column 0 of any layout: a demonstration, or the chosen completion of a pair.

  Returns:
    Objective; layout DEMO; stats LOGP.
    Terms: `sft`.
    Metrics: logp_chosen (nats per completion).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> quarter = scored.from_sequence_logps([[-2.0]], [[8]])
    >>> float(scored.evaluate(objectives.sft(), quarter).loss)
    0.25
  """
  likelihood = _nll.nll("token_mean")

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = likelihood.loss(scored, aux)
    return Loss({"sft": out.terms["nll"]}, out.metrics)

  return likelihood._replace(name="sft", hparams={}, loss=loss)
