"""f-DPO: DPO with an f-divergence in place of the reverse KL."""

import math

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import divergences, links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def f_dpo(
  beta: float = 0.1,
  divergence: divergences.Divergence | str = divergences.JENSEN_SHANNON,
) -> Objective:
  """f-DPO: DPO regularised by an f-divergence to the reference.

  L = -log sigma(beta f'(ratio_w) - beta f'(ratio_l)),   ratio = policy / ref
  Reverse KL, f'(t) = log t + 1, is DPO. Forward KL has -1/t, Jensen-Shannon
  log(2 t / (1 + t)), alpha (1 - t^-alpha) / alpha. Only an f with f'(0+) = -inf keeps
  the optimum inside the simplex; the others (total variation, chi-square) are refused.

  Paper: Wang et al. 2023, arXiv:2309.16240. Survey 2.3.3.
  Departs from the paper: nothing. Where exp overflows it is continued by its tangent
    (`links.exponential`): the authors' code gives inf or NaN there, TRL clips. TRL from
    0.29 on has another alpha: see `divergences.alpha_from_trl`.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref; > 0. Paper's scripts, IMDb: 0.1 (reverse KL, Jensen-Shannon), 0.01
      (alpha), 1e-5 (forward KL): not comparable between divergences.
    divergence: a `divergences.Divergence` or a name of `divergences.DIVERGENCES`.
      Paper: reverse KL, forward KL, Jensen-Shannon, alpha at 0.3, 0.5, 0.7.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `f_dpo`.
    Metrics: reward_* (beta f', which is 0 at ratio 1), reward_accuracy (fraction),
    logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: beta out of range, an unknown divergence, or one whose f'(0+) is finite
      (when built).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.ops import divergences
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> o = objectives.f_dpo(divergence=divergences.alpha(0.3))
    >>> round(float(scored.evaluate(o, first_step).loss), 4)
    0.6931
  """
  _hparams.check("f_dpo", "beta", beta, usual=0.1, gt=0)
  divergence = _hparams.choice(
    "f_dpo", "divergence", divergence, divergences.DIVERGENCES
  )
  if divergence.slope_at_0 > -math.inf:
    raise ValueError(
      f"f_dpo: {divergence} has f'(0+) = {divergence.slope_at_0:g}, so the optimal "
      "policy may give a completion probability 0, and its reward is then not beta "
      "f'; take a divergence with f'(0+) = -inf, such as divergences.JENSEN_SHANNON"
    )

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = beta * divergence.slope(_rewards.log_ratio(scored))
    loss_B = links.logistic(reward_BK[:, 0] - reward_BK[:, 1])
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"f_dpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="f_dpo",
    hparams={"beta": beta, "divergence": divergence},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
