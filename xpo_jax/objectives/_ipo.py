"""IPO: regression of the log-ratio gap to a finite target."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def ipo_distance(gap_B: Array, beta: float | Array) -> Array:
  """(gap - 1 / (2 beta))^2, elementwise; `gap` in nats, before beta."""
  return (gap_B - 1 / (2 * beta)) ** 2


def ipo(beta: float = 0.1) -> Objective:
  """IPO: squared loss of the log-ratio gap, without a Bradley-Terry assumption.

  L = (rho - 1 / (2 beta))^2,   rho = log-ratio_w - log-ratio_l
  The finite target keeps the policy near ref even where a preference is deterministic.

  Paper: Azar et al. 2023, arXiv:2310.12036, Eq. 17 (its tau is beta). Survey 3.3.6.
  Departs from the paper: nothing: log-ratios are summed, as in the DPO authors' code
    and OpenRLHF. TRL and others average per token: `ipo_avg`, with another scale of
    beta.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref: the target is 1 / (2 beta) nats per completion; > 0. Paper: 0.1 to
      10, in a bandit.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `ipo`.
    Metrics: reward_* (nats, beta times log-ratio: the target margin is 1/2),
    reward_accuracy (fraction), logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> float(scored.evaluate(objectives.ipo(beta=0.25), first_step).loss)  # (1/0.5)^2
    4.0
  """
  _hparams.check("ipo", "beta", beta, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    ratio_BK = _rewards.log_ratio(scored)
    loss_B = ipo_distance(ratio_BK[:, 0] - ratio_BK[:, 1], beta)
    metrics = _rewards.reward_metrics(scored, beta * ratio_BK)
    metrics |= _rewards.logp_metrics(scored)
    return Loss({"ipo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="ipo",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
