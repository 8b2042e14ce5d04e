"""Binary CRINGE: undesirable tokens give way to what the policy would rather say.

Over 80 lines: the draws and the contrast are here for pairwise CRINGE too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _unlikelihood
from xpo_jax.ops import masked, token_stats
from xpo_jax.types import (
  Array,
  Aux,
  Layout,
  Loss,
  Objective,
  Scored,
  State,
  nothing_shared,
)


def prepare_contrast(objective: str, k: int) -> Callable:
  """The `prepare` that draws a rival for each token by the softmax of the k logits.

  `Aux.rows` is the index of the rival, `[B, K, T]`; that of token t in row b depends on
  the key, `row_B[b]` and t alone. With k = 1 there is nothing to draw.
  """
  field = token_stats.contrast_tokens(k).field

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    key = _hparams.check_key(objective, key)
    rival_BKTJ = scored.extra[field][..., :k]

    def token(row: Array, t: Array, logits_KJ: Array) -> Array:
      own = jax.random.fold_in(jax.random.fold_in(key, row), t)
      return jax.random.categorical(own, logits_KJ)

    along_T = jax.vmap(token, in_axes=(None, 0, 1), out_axes=1)
    along_B = jax.vmap(along_T, in_axes=(0, None, 0))
    t_T = jnp.arange(rival_BKTJ.shape[2])
    return Aux(rows=along_B(scored.row_B, t_T, rival_BKTJ)), state

  return nothing_shared if k == 1 else prepare


def token_contrast(scored: Scored, drawn: Array | tuple, k: int, detach: bool) -> Array:
  """softplus(s_t - u_t), logits of token and rival, `[B, K, T]`; 0 on padding.

  Args:
    drawn: see `drawing`; not read if k is 1.
    k: number of contrast tokens of which one was drawn.
    detach: whether the rival is kept from being pushed up.
  """
  logits_BKTJ = scored.extra[token_stats.contrast_tokens(k).field]
  target_BKT, rival_BKTJ = logits_BKTJ[..., k], logits_BKTJ[..., :k]
  drawn_BKT = jnp.zeros(target_BKT.shape, int) if k == 1 else drawn
  rival_BKT = jnp.take_along_axis(rival_BKTJ, drawn_BKT[..., None], -1)[..., 0]
  rival_BKT = jax.lax.stop_gradient(rival_BKT) if detach else rival_BKT
  return masked.zero_padding(jax.nn.softplus(target_BKT - rival_BKT), scored.mask_BKT)


def cringe(alpha: float = 1.0, k: int = 1, detach: bool = False) -> Objective:
  """CRINGE: SFT on desirable answers, a contrast on each token of undesirable ones.

  L = (sum_D -log p(y_t) + alpha sum_U softplus(s_t - u_t)) / number of tokens
  with D and U the tokens of desirable and undesirable answers, s_t the logit of the
  token and u_t that of a rival, drawn by softmax among the k likeliest other tokens.

  Paper: Adolphs et al. 2022, arXiv:2211.05826, Eq. not checked. Survey 3.5.2.
  Departs from the paper: nothing. The authors' `train_ct_on_positive_examples` has no
    effect in their code and is left out. The iterations (label what the policy says,
    train again) are a loop around this.
  Reduction: one mean over all response tokens of the batch, desirable or not. The rival
    is drawn without gradient, its logit has one: it is pushed up.

  Args:
    alpha: weight of the contrast; >= 0. Code: 1.
    k: number of contrast tokens to draw from; 1 takes the likeliest and draws nothing.
      Paper: 1.
    detach: no gradient through the rival's logit. Code: False.

  Returns:
    Objective; layout RATED; stats LOGP, contrast_tokens(k); columns desirable_BK; draws
    if k > 1.
    Terms: `likelihood`, `cringe`. Metrics: logp_chosen, logp_rejected (nats per
    completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> o, one, bad = objectives.cringe(), np.ones((1, 1, 1), int), np.zeros((1, 1))
    >>> even = np.zeros((1, 1, 1, 3))  # as likely as its rival: log 2
    >>> s = scored.from_logits(even, one, one, stats=o.stats, desirable_BK=bad)
    >>> round(float(scored.evaluate(o, s).loss), 4)
    0.6931
  """
  _hparams.check("cringe", "alpha", alpha, paper=1, ge=0)
  stat = token_stats.contrast_tokens(k)

  def loss(scored: Scored, aux: Aux) -> Loss:
    contrast_BK = masked.sum_T(
      token_contrast(scored, aux.rows, k, detach), scored.mask_BKT
    )
    return _unlikelihood.likelihood_and("cringe", scored, alpha * contrast_BK[:, 0])

  hparams = {"alpha": alpha, "k": k, "detach": detach}
  stats = frozenset({token_stats.LOGP, stat})
  columns = frozenset({"desirable_BK"})
  prepare = prepare_contrast("cringe", k)
  return Objective(
    name="cringe",
    hparams=hparams,
    layout=Layout.RATED,
    stats=stats,
    loss=loss,
    columns=columns,
    prepare=prepare,
  )
