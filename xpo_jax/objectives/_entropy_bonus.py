"""Entropy bonus: any objective that reads tokens, minus the policy's mean entropy."""

from xpo_jax.objectives import _hparams
from xpo_jax.ops import policy_loss, token_stats
from xpo_jax.types import Aux, Loss, Mean, Objective, Scored


def entropy_bonus(objective: Objective, weight: float = 0.001) -> Objective:
  """Entropy bonus: an objective minus the policy's entropy per token, times a weight.

  L = L_objective - weight mean_t H(pi(. | s_t))
  with H over the whole vocabulary at each completion token, computed with its gradient
  in chunks where the batch is scored.

  Paper: none of its own: Williams and Peng 1991; A3C, Mnih et al. 2016,
    arXiv:1602.01783; an option of PPO, arXiv:1707.06347, and of verl, OpenRLHF and TRL.
  Reduction: one mean over all completion tokens of the batch, as in TRL and OpenRLHF,
    whatever the objective's own reduction. The sampler's temperature applies to it as
    to every statistic.

  Args:
    objective: any; its terms, metrics, data and state are kept.
    weight: of the entropy, per nat; any sign, a negative one lowers the entropy. A3C:
      0.01; off by default in verl and OpenRLHF.

  Returns:
    Objective; the statistic ENTROPY beside the objective's own; reads tokens.
    Terms: the objective's, and `entropy_bonus`, -weight times the entropy.

  Raises:
    ValueError: the weight is not a finite number (when built).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> o = objectives.entropy_bonus(objectives.grpo(), 0.01)
    >>> sorted(scored.evaluate(o, toy.scored(K=3)).terms)
    ['entropy_bonus', 'grpo']
  """
  _hparams.check("entropy_bonus", "weight", weight, usual=0.01)

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = objective.loss(scored, aux)
    entropy = policy_loss.token_mean(scored, scored.extra["entropy_BKT"])
    bonus = Mean(-weight * entropy.total, entropy.weight)
    return Loss(dict(out.terms) | {"entropy_bonus": bonus}, out.metrics)

  return objective._replace(
    name="entropy_bonus",
    hparams={"objective": objective, "weight": weight},
    stats=objective.stats | {token_stats.ENTROPY},
    reads_tokens=True,
    loss=loss,
  )
