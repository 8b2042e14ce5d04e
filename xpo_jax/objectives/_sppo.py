"""SPPO: regression of log-ratios on win rates, in self-play."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def sppo(beta: float = 1e-3) -> Objective:
  """SPPO: squared loss of the log-ratio to the centred win rate.

  L = mean over y in (y_w, y_l) of (log-ratio_y - (P_y - 1/2) / beta)^2
  with P_y = P(y > policy of the previous round), which is also the reference. An exact
  minimiser is a step of multiplicative weights with eta = 1 / beta, whose log-partition
  is approximated by eta / 2 (`preference_games.sppo_step` is the exact step).

  Paper: Wu et al. 2024, arXiv:2405.00675, Eq. 4.7; eta is 1 / beta. Survey 3.11.
  Departs from the paper: nothing. As in the authors' code, the pair is the best and the
    worst of 5 samples (`pairing.best_worst` on `preference_games.win_rate`); that code
    keeps pairs of identical completions, this one does not. Its "sppo_single" uses
    `preference_games.pair_win_rates` of the two, TRL's "sppo_hard" uses 1 and 0 and
    adds the two squares.
  Reduction: log-ratio summed over tokens; mean over the two completions, then over
    pairs.

  Args:
    beta: 1 / eta, in win probability per nat; > 0. Paper: 1e-3 (eta = 1000).

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP; columns reward_BK, the win rates.
    Terms: `sppo`.
    Metrics: reward_* (beta times log-ratio, to become P - 1/2), reward_accuracy
    (fraction), logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps(
    ...   [[-1.0, -4.0]], [[4, 4]], [[-3.0, -3.0]], reward_BK=[[0.75, 0.25]]
    ... )
    >>> float(scored.evaluate(objectives.sppo(beta=0.25), s).loss)  # (1^2 + 0^2) / 2
    0.5
  """
  _hparams.check("sppo", "beta", beta, usual=1e-3, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    log_ratio_BK = _rewards.log_ratio(scored)
    target_BK = (scored.reward_BK - 0.5) / beta
    loss_B = ((log_ratio_BK - target_BK) ** 2).mean(1)
    metrics = _rewards.reward_metrics(scored, beta * log_ratio_BK)
    metrics |= _rewards.logp_metrics(scored)
    return Loss({"sppo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="sppo",
    hparams={"beta": beta},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
    reward_kind="win_rates",
  )
