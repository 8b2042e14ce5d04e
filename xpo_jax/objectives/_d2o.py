"""D2O: an undesirable completion against the policy's own samples."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, masked, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored

REF_MINUS_LOGP = token_stats.logp_of("ref_minus", "ref_minus_logp_BKT")
REF_PLUS_LOGP = token_stats.logp_of("ref_plus", "ref_plus_logp_BKT")


def d2o(beta: float = 0.1, alpha: float = 0.1) -> Objective:
  """D2O: lowers an undesirable completion relative to the average of self-samples.

  L = -log sigma(beta mean_i log(pi / pi_minus)(y_i) - alpha log(pi / pi_plus)(y_l))
  with y_i self-samples, y_l the undesirable completion, and two references, a more
  harmful pi_minus and a more helpful pi_plus (both may be the starting model).

  Paper: Duan et al. 2024, arXiv:2403.03419. Survey 3.10.
  Departs from the paper: form and defaults are a third party's (11 samples a prompt);
    no authors' code was found. A prompt without an undesirable completion or without
    samples gives 0.
  Reduction: log-ratios summed over tokens; loss averaged over prompts.

  Args:
    beta: weight of the self-samples' log-ratio, per nat; > 0. That code: 0.1.
    alpha: weight of the undesirable completion's, per nat; > 0. That code: 0.1.

  Returns:
    Objective; layout RANKED, in any order: self-samples are desirable 1, the other
    completion 0; stats LOGP, REF_MINUS_LOGP, REF_PLUS_LOGP; columns desirable_BK.
    Terms: `d2o`.
    Metrics: reward_* (nats), reward_accuracy (fraction).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> x = -np.ones((1, 2, 1))
    >>> refs = {"ref_minus_logp_BKT": x, "ref_plus_logp_BKT": x}
    >>> s = scored.from_token_logps(x, -x, desirable_BK=[[1, 0]], extra=refs)
    >>> round(float(scored.evaluate(objectives.d2o(), s).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("d2o", "beta", beta, usual=0.1, gt=0)
  _hparams.check("d2o", "alpha", alpha, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    up_BK = jnp.where(scored.desirable_BK > 0, scored.present_BK, 0)
    down_BK = jnp.where(scored.desirable_BK > 0, 0, scored.present_BK)

    def mean_log_ratio(ref: str, side_BK: Array) -> Array:
      ratio_BKT = scored.logp_BKT - scored.extra[ref]
      ratio_BK = masked.sum_T(ratio_BKT, scored.mask_BKT)
      return Mean((ratio_BK * side_BK).sum(1), side_BK.sum(1)).value

    chosen_B = beta * mean_log_ratio("ref_minus_logp_BKT", up_BK)
    rejected_B = alpha * mean_log_ratio("ref_plus_logp_BKT", down_BK)
    both_B = (up_BK.sum(1) > 0) & (down_BK.sum(1) > 0)
    loss_B = jnp.where(both_B, links.logistic(chosen_B - rejected_B), 0)
    metrics = _rewards.reward_metrics(scored, jnp.stack([chosen_B, rejected_B], 1))
    return Loss({"d2o": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="d2o",
    hparams={"beta": beta, "alpha": alpha},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.LOGP, REF_MINUS_LOGP, REF_PLUS_LOGP}),
    loss=loss,
    columns=frozenset({"desirable_BK"}),
  )
