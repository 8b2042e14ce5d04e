"""NPO: negative preference optimisation, for unlearning."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def forget_rows(scored: Scored) -> Scored:
  """Sets the weight of rows with desirable completions to 0."""
  desirable_B = scored.desirable_BK[:, 0] > 0
  return scored.replace(weight_B=jnp.where(desirable_B, 0, scored.weight_B))


def npo(beta: float = 0.1) -> Objective:
  """NPO: lowers the likelihood of undesirable completions, more slowly as it falls.

  L = -(2 / beta) log sigma(-beta log-ratio)   on undesirable completions only

  beta -> 0 is gradient ascent on the log-likelihood, up to the constant 2 log 2 / beta.

  Paper: Zhang et al. 2024, arXiv:2404.05868, Eq. 3. Survey 3.10.
  Departs from the paper: nothing. The retain terms have data of their own:
    `AuxLoss(1.0, sft(), "retain")` (NPO + RT) or `AuxLoss(1.0, retain_kl(), "retain")`
    (NPO + KL), beside `AuxLoss(1.0, npo(), "forget")`. Desirable rows are ignored.
  Reduction: log-ratio summed over tokens; loss averaged over the undesirable rows.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.

  Returns:
    Objective; layout RATED; stats LOGP, REF_LOGP; columns desirable_BK.
    Terms: `npo`.
    Metrics: reward_rejected (beta times the log-ratio), logp_rejected (nats per
    completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> x, bad = [[-3.0]], [[0]]
    >>> first_step = scored.from_sequence_logps(x, [[8]], x, desirable_BK=bad)
    >>> round(float(scored.evaluate(objectives.npo(beta=2.0), first_step).loss), 4)
    0.6931
  """
  _hparams.check("npo", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_B = _rewards.rewards(scored, beta)[:, 0]
    forget = forget_rows(scored)
    metrics = {
      "reward_rejected": forget.mean_B(reward_B),
      "logp_rejected": forget.mean_B(_rewards.seq_logp(scored)[:, 0]),
    }
    return Loss({"npo": forget.mean_B(2 / beta * links.logistic(-reward_B))}, metrics)

  return Objective(
    name="npo",
    hparams={"beta": beta},
    layout=Layout.RATED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"desirable_BK"}),
  )
