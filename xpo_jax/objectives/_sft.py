"""Supervised fine-tuning."""

from xpo_jax import token_stats
from xpo_jax.objectives import _rewards
from xpo_jax.types import Aux, Layout, Loss, Mean, Objective, Scored


def sft() -> Objective:
  """SFT: negative log-likelihood of the demonstration, per token.

  L = - sum_{prompts, t} log pi(y_t | x, y_<t) / number of tokens

  Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, Eq. not checked.
  Departs from the paper: nothing known.
  Reduction: one mean over all response tokens of the batch, so that a long answer
    weighs more than a short one and accumulation stays exact. Reads column 0 of any
    layout: a demonstration, or the chosen answer of a pair.

  Returns:
    Objective; layout DEMO; needs LOGP. Terms: `sft`.
    Metrics: logp_chosen (nats per completion).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> quarter = scored.from_sequence_logps([[-2.0]], [[8]])
    >>> float(scored.evaluate(objectives.sft(), quarter).loss)
    0.25
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    weight_B = scored.weight_B * scored.present_BK[:, 0]
    nll_B = -_rewards.seq_logp(scored)[:, 0]
    nll = Mean((nll_B * weight_B).sum(), (scored.length_BK[:, 0] * weight_B).sum())
    metrics = {"logp_chosen": Mean(-nll.total, weight_B.sum())}
    return Loss({"sft": nll}, metrics)

  needs = frozenset({token_stats.LOGP})
  return Objective("sft", {}, Layout.DEMO, needs, loss)
