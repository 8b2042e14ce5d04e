"""DPO-Positive (Smaug): DPO that penalises a falling chosen likelihood."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def dpop(beta: float = 0.3, penalty: float = 50.0) -> Objective:
  """DPOP: DPO with a penalty where the chosen completion falls below the reference.

  L = -log sigma(beta [log-ratio_w - log-ratio_l - lambda max(0, -log-ratio_w)])

  Paper: Pal et al. 2024 (Smaug), arXiv:2402.13228, Eq. 3. Survey 3.3.4.
  Departs from the paper: nothing known. The penalty is inside the sigmoid and scaled by
    beta (early public codes had it outside, with the wrong sign). At the first step of
    training every log-ratio is 0, the kink of the penalty: as with torch.maximum in
    public codes, the slope there is half the penalty's, so that the gradient of the
    chosen completion is 1 + lambda / 2 times DPO's.
  Reduction: log-ratio summed over tokens; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.3, as public trainers report it; other
      public codes: 0.1.
    penalty: lambda, per nat of the chosen completion below the reference; >= 0. Paper:
      50. 0 gives DPO.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `dpop`.
    Metrics: reward_* (nats, without the penalty), reward_accuracy (fraction),
    logp_chosen, logp_rejected (nats per completion), fallen (nats of the chosen
    completion below the reference).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> fell = scored.from_sequence_logps([[-1.0, -51.0]], [[1, 1]], [[0.0, 0.0]])
    >>> round(float(scored.evaluate(objectives.dpop(), fell).loss), 4)  # -1 + 51 - 50
    0.6931
  """
  _hparams.check("dpop", "beta", beta, usual=0.3, gt=0)
  _hparams.check("dpop", "penalty", penalty, usual=50, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    ratio_BK = _rewards.log_ratio(scored)
    fallen_B = jnp.maximum(-ratio_BK[:, 0], 0)
    margin_B = ratio_BK[:, 0] - ratio_BK[:, 1] - penalty * fallen_B
    loss_B = links.logistic(beta * margin_B)
    metrics = _rewards.reward_metrics(scored, beta * ratio_BK)
    metrics |= _rewards.logp_metrics(scored) | {"fallen": scored.mean_B(fallen_B)}
    return Loss({"dpop": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="dpop",
    hparams={"beta": beta, "penalty": penalty},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
  )
