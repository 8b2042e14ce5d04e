"""WPO: DPO weighted by the likelihood of the pair under the policy."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _dpo, _hparams
from xpo_jax.ops import masked
from xpo_jax.ops.head import reductions
from xpo_jax.types import Array, Aux, Loss, Objective, Reduced, Scored, TokenStat


def _log_mean_prob(roles: Mapping[str, Array], target_C: Array) -> Array:
  """log sum_v pi(v)^2, the log of the policy's mean token probability, `[C]`."""
  logits_CV = roles["policy"]
  square_C = jax.nn.logsumexp(2 * logits_CV, axis=-1)
  return _from_sums(square_C, jax.nn.logsumexp(logits_CV, axis=-1), target_C)


def _from_sums(square_C: Array, total_C: Array, target_C: Array) -> Array:
  del target_C
  return square_C - 2 * total_C


_POLICY = reductions.Logits("policy")
LOG_MEAN_PROB = TokenStat(  # in extra
  "log_mean_prob_BKT",
  ("policy",),
  _log_mean_prob,
  Reduced(
    (reductions.LogSumExp(_POLICY, power=2), reductions.LogSumExp(_POLICY)), _from_sums
  ),
)


def wpo_weight(scored: Scored, max_weight: float | Array = 1.0) -> Array:
  """Weight w(y_w) w(y_l) of a pair, at most `max_weight`, `[B]`; no gradient.

  w(y) = exp(mean over tokens of log pi(y_t) - log sum_v pi(v)^2): about 1 for
  completions that are typical of the policy, near 0 for atypical ones.
  """
  relative_BKT = scored.logp_BKT - scored.extra["log_mean_prob_BKT"]
  average_BK = masked.per_token(
    masked.sum_T(relative_BKT, scored.mask_BKT), scored.length_BK
  )
  weight_B = jnp.minimum(jnp.exp(average_BK.sum(1)), max_weight)
  return jax.lax.stop_gradient(weight_B)


def wpo(
  beta: float = 0.01, label_smoothing: float = 0.0, max_weight: float = 1.0
) -> Objective:
  """WPO: DPO with each pair weighted by its likelihood under the policy.

  L = w DPO,   w = min(max_weight, w(y_w) w(y_l)),
  w(y) = exp(mean_t [log pi(y_t|s_t) - log sum_v pi(v|s_t)^2])

  Paper: Zhou et al. 2024, arXiv:2406.11827, Eq. 2.
  Departs from the paper: as in the authors' code, the product is clipped at 1. TRL from
    0.29 on does not clip it (a large `max_weight`); earlier versions mixed neighbouring
    positions: not copied.
  Reduction: log-ratio summed over tokens, log w averaged over them; loss averaged over
    pairs, not divided by the sum of weights. No gradient through w, of the current
    policy.

  Args:
    beta: tie to ref, per nat; > 0. Paper's code: 0.01.
    label_smoothing: probability that a label is flipped; 0 <= e < 0.5. Paper: 0.
    max_weight: bound on the weight of a pair; > 0. Paper's code: 1.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP, LOG_MEAN_PROB.
    Terms: `wpo`.
    Metrics: those of `dpo`, and weight (a factor).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> o = objectives.wpo()
    >>> flat = np.zeros((1, 2, 1, 7))  # every token as likely: w = 1
    >>> s = scored.from_logits(
    ...   flat, flat[..., 0].astype(int), flat[..., 0] + 1, flat, stats=o.stats
    ... )
    >>> round(float(scored.evaluate(o, s).loss), 4)  # log 2
    0.6931
  """
  _hparams.check("wpo", "beta", beta, usual=0.01, gt=0)
  _hparams.check("wpo", "label_smoothing", label_smoothing, usual=0, ge=0, lt=0.5)
  _hparams.check("wpo", "max_weight", max_weight, usual=1, gt=0)
  dpo = _dpo.dpo(beta, label_smoothing)

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = dpo.loss(scored, aux)
    weight_B = wpo_weight(scored, max_weight)
    loss_B = weight_B * out.per_example_B
    metrics = out.metrics | {"weight": scored.mean_B(weight_B)}
    return Loss({"wpo": scored.mean_B(loss_B)}, metrics, loss_B)

  return dpo._replace(
    name="wpo",
    hparams={
      "beta": beta,
      "label_smoothing": label_smoothing,
      "max_weight": max_weight,
    },
    stats=dpo.stats | {LOG_MEAN_PROB},
    loss=loss,
  )
