"""TDPO2: TDPO1 without gradient through the KL of the chosen completion."""

import jax

from xpo_jax.objectives import _hparams, _rewards, _tdpo1
from xpo_jax.ops import links
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def tdpo2(beta: float = 0.1, alpha: float = 0.5) -> Objective:
  """TDPO2: token-level DPO with a one-sided penalty on the sequential KL.

  L = -log sigma(beta (log-ratio_w - log-ratio_l) - alpha beta (D_l - sg(D_w)))
  with D_y = sum_t KL(ref(.|s_t) || policy(.|s_t)) over the whole vocabulary.

  Paper: Zeng et al. 2024, arXiv:2404.11999, Eq. 17 and 18. Survey 3.4.2.
  Departs from the paper: nothing. The authors' configuration file trains TDPO1 by
    default (`if_tdpo2`). At equal steps TDPO2 stays much nearer to ref than DPO:
    compare the two at the same KL.
  Reduction: log-ratio and KL summed over tokens; loss averaged over pairs. No gradient
    through D_w.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1.
    alpha: weight of the KL gap; >= 0. Paper: 0.5. 0 gives DPO.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP, REF_KL.
    Terms: `tdpo2`.
    Metrics: those of `tdpo1`.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> pairs = toy.scored(K=2)
    >>> dpo, tdpo2 = objectives.dpo(beta=0.3), objectives.tdpo2(beta=0.3, alpha=0.0)
    >>> bool(scored.evaluate(tdpo2, pairs).loss == scored.evaluate(dpo, pairs).loss)
    True
  """
  _hparams.check("tdpo2", "beta", beta, usual=0.1, gt=0)
  _hparams.check("tdpo2", "alpha", alpha, usual=0.5, ge=0)
  tdpo1 = _tdpo1.tdpo1(beta)

  def loss(scored: Scored, aux: Aux) -> Loss:
    log_ratio_BK = _rewards.log_ratio(scored)
    kl_BK = _tdpo1.sequential_kl(scored)
    gap_B = kl_BK[:, 1] - jax.lax.stop_gradient(kl_BK[:, 0])
    margin_B = beta * (log_ratio_BK[:, 0] - log_ratio_BK[:, 1] - alpha * gap_B)
    loss_B = links.logistic(margin_B)
    metrics = tdpo1.loss(scored, aux).metrics
    return Loss({"tdpo2": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="tdpo2",
    hparams={"beta": beta, "alpha": alpha},
    layout=Layout.PAIR,
    stats=tdpo1.stats,
    loss=loss,
  )
