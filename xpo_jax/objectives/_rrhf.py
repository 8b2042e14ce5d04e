"""RRHF: ranking by average log-probability, plus SFT on the best completion."""

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import masked, ranking, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def rrhf(weight: float = 1.0, length_penalty: float = 1.0) -> Objective:
  """RRHF: hinge loss on all pairs of average log-probabilities, plus SFT on the best.

  L = weight sum_{r_i > r_j} max(0, p_j - p_i) - (log-probability of the best) / length,
  p = log-probability / length^length_penalty; no margin, no reference.

  Paper: Yuan et al. 2023, arXiv:2304.05302. Survey 3.9.
  Departs from the paper: the paper's SFT term is a sum over tokens, its code's a mean;
    the mean is used here, to which the settings belong. The code overwrites the mask
    and so divides by the padded width, losing the length normalisation: a bug, not
    copied.
  Reduction: p averaged over tokens, a sum over pairs, SFT averaged over the tokens of
    the best completion (ties: the first column); both averaged over prompts. A list of
    one has only its SFT term.

  Args:
    weight: weight of the ranking term; >= 0. Paper: 1 (the code's default is 100, its
      script 1).
    length_penalty: exponent of the length; >= 0. Paper: 1.

  Returns:
    Objective; layout RANKED; stats LOGP; columns reward_BK (only its order counts).
    Terms: `rrhf`, `sft`.
    Metrics: reward_* of p (nats per token), reward_accuracy (fraction of pairs), ndcg.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example: -1 and -2 nats per token, the better completion lower by 1.
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps([[-4, -8]], [[4, 4]], reward_BK=[[0, 1]])
    >>> terms = scored.evaluate(objectives.rrhf(), s).terms
    >>> {name: float(term) for name, term in terms.items()}
    {'rrhf': 1.0, 'sft': 2.0}
  """
  _hparams.check("rrhf", "weight", weight, usual=1, ge=0)
  _hparams.check("rrhf", "length_penalty", length_penalty, usual=1, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    label_BK, present_BK = scored.reward_BK, scored.present_BK
    length_BK = scored.length_BK**length_penalty
    score_BK = masked.per_token(_rewards.seq_logp(scored), length_BK)
    behind_BKK = jax.nn.relu(score_BK[:, None, :] - score_BK[:, :, None])
    better_BKK = ranking.better(label_BK, present_BK)
    hinge_B = weight * jnp.where(better_BKK, behind_BKK, 0).sum((1, 2))
    best_BK = ranking.rank(label_BK, present_BK) == 1
    nll_B = -jnp.where(best_BK, _rewards.avg_logp(scored), 0).sum(1)
    terms = {"rrhf": scored.mean_B(hinge_B), "sft": scored.mean_B(nll_B)}
    return Loss(terms, ranking.metrics(scored, score_BK), hinge_B + nll_B)

  return Objective(
    name="rrhf",
    hparams={"weight": weight, "length_penalty": length_penalty},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
