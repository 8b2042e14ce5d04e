"""Online IPO and IPO-MD: IPO on sampled pairs with soft labels."""

from xpo_jax.objectives import _hparams, _ipo, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def ipo_md(beta: float = 1.0) -> Objective:
  """Online IPO, IPO-MD: IPO on two samples, labelled by a preference model.

  L = beta (p (h - 1 / (2 beta))^2 + (1 - p) (h + 1 / (2 beta))^2)
  with h = log-ratio_y - log-ratio_y' and p = P(y > y'), so that dL/dh = 2 beta h -
  (2 p - 1). The sampling distribution decides the method: both from the policy give
  online IPO, whose stationary point is the equilibrium of the KL-regularised game; both
  from `preference_games.mixture` of policy and reference give IPO-MD. No gradient
  through sampling.

  Paper: Calandriello et al. 2024, arXiv:2403.08635; beta is its tau.
  Departs from the paper: nothing but a constant. Its other beta, the reference's share
    of the mixture (0.125 selected for IPO-MD), is set in the sampler.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, in win probability per nat; > 0. Paper: 1.0.

  Returns:
    Objective; layout PAIR, in any order: the loss is the same with the two swapped;
    stats LOGP, REF_LOGP; columns reward_BK: win rates of the two against each other, p
    = (1 + first - second) / 2, so that p and 1 - p add up to 1 for any judge
    (`preference_games.pair_win_rates` makes them from one p; so do K = 2 samples with
    `Feedback.include_self` False, since a draw with itself would halve 2 p - 1). Pairs
    of p = 1/2 count too: `pair_construction.all_pairs` keeps them, `best_worst` does
    not.
    Terms: `ipo_md`.
    Metrics: reward_* (beta times log-ratio), reward_accuracy (fraction), logp_chosen,
    logp_rejected (nats per completion); chosen is column 0.

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps(
    ...   [[-1.0, -1.0]], [[4, 4]], [[-1.0, -1.0]], reward_BK=[[0.9, 0.1]]
    ... )
    >>> float(scored.evaluate(objectives.ipo_md(beta=0.5), s).loss)  # h = 0: 1/(4 beta)
    0.5
  """
  _hparams.check("ipo_md", "beta", beta, usual=1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    log_ratio_BK = _rewards.log_ratio(scored)
    gap_B = log_ratio_BK[:, 0] - log_ratio_BK[:, 1]
    p_B = (1 + scored.reward_BK[:, 0] - scored.reward_BK[:, 1]) / 2
    first_B = _ipo.ipo_distance(gap_B, beta)
    second_B = _ipo.ipo_distance(-gap_B, beta)
    loss_B = beta * (p_B * first_B + (1 - p_B) * second_B)
    metrics = _rewards.reward_metrics(scored, beta * log_ratio_BK)
    metrics |= _rewards.logp_metrics(scored)
    return Loss({"ipo_md": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="ipo_md",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
    reward_kind="pairwise",
  )
