"""Unlikelihood training, on labelled completions and on tokens as in the paper."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards, _sft
from xpo_jax.ops import masked, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored


def likelihood_and_penalty(name: str, scored: Scored, penalty_B: Array) -> Loss:
  """NLL of desirable completions, a penalty on the others; both per token of all rows.

  Args:
    name: name of the penalty's term; the other is `likelihood`.
    scored: with `desirable_BK`.
    penalty_B: weighted penalty, summed over the tokens of the completion.
  """
  desirable_B = scored.desirable_BK[:, 0] > 0
  logp_B = _rewards.seq_logp(scored)[:, 0]
  terms_B = {
    "likelihood": jnp.where(desirable_B, -logp_B, 0),
    name: jnp.where(desirable_B, 0, penalty_B),
  }
  tokens = (scored.length_BK[:, 0] * scored.weight_B).sum()
  terms = {k: Mean((x_B * scored.weight_B).sum(), tokens) for k, x_B in terms_B.items()}
  return Loss(terms, _rewards.by_label(scored, "logp", logp_B, desirable_B))


def token_unlikelihood(alpha: float = 1.0) -> Objective:
  """The paper's token-level form: SFT plus `alpha` times a penalty on every token.

  The caller provides the penalty as `penalty_BKT` in `Scored.extra`, for example
  `repetition.unlikelihood` of tokens that occurred before. Layout DEMO; stats LOGP;
  columns penalty_BKT; reads tokens. Terms: `sft`, `unlikelihood`, both per token.
  """
  _hparams.check("unlikelihood", "alpha", alpha, usual=1, ge=0)
  nll = _sft.sft()

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = nll.loss(scored, aux)
    penalty_BK = alpha * masked.sum_T(scored.extra["penalty_BKT"], scored.mask_BKT)
    penalty_B = penalty_BK[:, 0] * scored.weight_B * scored.present_BK[:, 0]
    penalty = Mean(penalty_B.sum(), out.terms["sft"].weight)
    return Loss({**out.terms, "unlikelihood": penalty}, out.metrics)

  return Objective(
    name="token_unlikelihood",
    hparams={"alpha": alpha},
    layout=Layout.DEMO,
    stats=nll.stats,
    loss=loss,
    columns=frozenset({"penalty_BKT"}),
    reads_tokens=True,
  )


def unlikelihood(alpha: float = 1.0) -> Objective:
  """Unlikelihood: SFT on desirable completions, log(1 - p) on undesirable tokens.

  L = (sum_D -log p(y_t) - alpha sum_U log(1 - p(y_t))) / number of tokens
  with D and U the tokens of desirable and undesirable completions.

  Paper: Welleck et al. 2019, arXiv:1908.04319.
  Departs from the paper: the paper's negatives are earlier tokens and repeated n-grams;
    here they are the tokens of completions labelled undesirable (CRINGE's baseline).
    For the paper's own see `token_unlikelihood` and the module `repetition`. The
    authors' code clamps 1 - p at 1e-5, which removes the gradient exactly where p is 1;
    here log(1 - p) is computed from the logits and needs no clamp.
  Reduction: one mean over all completion tokens of the batch, desirable or not.

  Args:
    alpha: weight of the undesirable tokens; >= 0. Paper: 1.

  Returns:
    Objective; layout RATED; stats LOGP, REST_LOGP; columns desirable_BK.
    Terms: `likelihood`, `unlikelihood`.
    Metrics: logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> o, one, bad = objectives.unlikelihood(), np.ones((1, 1, 1), int), [[0]]
    >>> logits = np.log([[[[0.25, 0.75]]]])
    >>> s = scored.from_logits(logits, one, one, stats=o.stats, desirable_BK=bad)
    >>> round(float(scored.evaluate(o, s).loss), 4)  # -log(1 - 0.75) = log 4
    1.3863
  """
  _hparams.check("unlikelihood", "alpha", alpha, usual=1, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    rest_BK = masked.sum_T(scored.extra["rest_logp_BKT"], scored.mask_BKT)
    return likelihood_and_penalty("unlikelihood", scored, -alpha * rest_BK[:, 0])

  return Objective(
    name="unlikelihood",
    hparams={"alpha": alpha},
    layout=Layout.RATED,
    stats=frozenset({token_stats.LOGP, token_stats.REST_LOGP}),
    loss=loss,
    columns=frozenset({"desirable_BK"}),
  )
