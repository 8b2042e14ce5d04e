"""SimPER: the difference of two inverse perplexities, without hyperparameters."""

import jax.numpy as jnp

from xpo_jax.objectives import _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def simper() -> Objective:
  """SimPER: raises the inverse perplexity of the chosen completion, lowers the other's.

  L = -exp(a_w) + exp(a_l)
  with a the log-probability per token, so that exp(a) is the inverse perplexity, the
  geometric mean of the token probabilities. No reference, no beta, no margin; the loss
  is within [-1, 1], and an unlikely completion moves the policy little: the gradient of
  a is weighted by exp(a) itself.

  Paper: Xiao et al. 2025, arXiv:2502.00883; the loss is that of the authors' code.
  Departs from the paper: nothing known.
  Reduction: log-probability averaged over tokens; loss averaged over pairs. An empty
    completion has inverse perplexity 1.

  Returns:
    Objective; layout PAIR; stats LOGP.
    Terms: `simper`.
    Metrics: reward_* (inverse perplexities, probabilities), reward_accuracy (fraction),
    logp_chosen, logp_rejected (nats per completion).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> seq_logp = [[2 * np.log(0.5), np.log(0.25)]]  # 0.5 and 0.25 per token
    >>> pair = scored.from_sequence_logps(seq_logp, [[2, 1]])
    >>> round(float(scored.evaluate(objectives.simper(), pair).loss), 4)
    -0.25
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    inverse_BK = jnp.exp(_rewards.avg_logp(scored))
    loss_B = inverse_BK[:, 1] - inverse_BK[:, 0]
    metrics = _rewards.reward_metrics(scored, inverse_BK)
    metrics |= _rewards.logp_metrics(scored)
    return Loss({"simper": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="simper",
    hparams={},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
  )
