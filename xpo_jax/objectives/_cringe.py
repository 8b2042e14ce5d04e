"""Binary CRINGE: token-level contrast of undesirable completions."""

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
  """Builds a `prepare` that samples one of k contrast tokens per position, by softmax.

  `Aux.rows` is the index of the contrast token, `[B, K, T]`; that of token t in row b
  depends on the key, `row_B[b]` and t alone. With k = 1 nothing is drawn.
  """
  field = token_stats.contrast_tokens(k).field

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    key = _hparams.check_key(objective, key)
    contrast_BKTJ = scored.extra[field][..., :k]

    def token(row: Array, t: Array, logits_KJ: Array) -> Array:
      own = jax.random.fold_in(jax.random.fold_in(key, row), t)
      return jax.random.categorical(own, logits_KJ)

    along_T = jax.vmap(token, in_axes=(None, 0, 1), out_axes=1)
    along_B = jax.vmap(along_T, in_axes=(0, None, 0))
    t_T = jnp.arange(contrast_BKTJ.shape[2])
    return Aux(rows=along_B(scored.row_B, t_T, contrast_BKTJ)), state

  return nothing_shared if k == 1 else prepare


def token_contrast(scored: Scored, drawn: Array, k: int, detach: bool) -> Array:
  """softplus(s_t - u_t), logits of token and contrast token, `[B, K, T]`; 0 on padding.

  Args:
    scored: with the statistic `contrast_tokens(k)`.
    drawn: see `prepare_contrast`; not read if k is 1.
    k: number of contrast tokens of which one was drawn.
    detach: whether to stop the gradient of the contrast token's logit.
  """
  logits_BKTJ = scored.extra[token_stats.contrast_tokens(k).field]
  target_BKT, contrast_BKTJ = logits_BKTJ[..., k], logits_BKTJ[..., :k]
  drawn_BKT = jnp.zeros(target_BKT.shape, int) if k == 1 else drawn
  contrast_BKT = jnp.take_along_axis(contrast_BKTJ, drawn_BKT[..., None], -1)[..., 0]
  contrast_BKT = jax.lax.stop_gradient(contrast_BKT) if detach else contrast_BKT
  return masked.zero_padding(
    jax.nn.softplus(target_BKT - contrast_BKT), scored.mask_BKT
  )


def cringe(alpha: float = 1.0, k: int = 1, detach: bool = False) -> Objective:
  """CRINGE: SFT on desirable completions, token-level contrast on undesirable ones.

  L = (sum_D -log p(y_t) + alpha sum_U softplus(s_t - u_t)) / number of tokens
  with D and U the tokens of desirable and undesirable completions, s_t the logit of the
  token and u_t that of a contrast token, drawn by softmax among the k most likely other
  tokens.

  Paper: Adolphs et al. 2022, arXiv:2211.05826. Survey 3.5.2.
  Departs from the paper: nothing. The authors' `train_ct_on_positive_examples` has no
    effect in their code and is left out. The paper's iterations (label samples of the
    policy, train again) are left to the training loop.
  Reduction: one mean over all completion tokens of the batch, desirable or not. The
    contrast token is sampled without gradient; its logit has one and is raised.

  Args:
    alpha: weight of the contrast; >= 0. Code: 1.
    k: number of contrast tokens to draw from; 1 takes the most likely, without a draw.
      Paper: 1.
    detach: no gradient through the logit of the contrast token. Code: False.

  Returns:
    Objective; layout RATED; stats LOGP, contrast_tokens(k); columns desirable_BK; draws
    random numbers if k > 1.
    Terms: `likelihood`, `cringe`.
    Metrics: logp_chosen, logp_rejected (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> o, one, bad = objectives.cringe(), np.ones((1, 1, 1), int), np.zeros((1, 1))
    >>> even = np.zeros((1, 1, 1, 3))  # as likely as the contrast token: log 2
    >>> s = scored.from_logits(even, one, one, stats=o.stats, desirable_BK=bad)
    >>> round(float(scored.evaluate(o, s).loss), 4)
    0.6931
  """
  _hparams.check("cringe", "alpha", alpha, usual=1, ge=0)
  stat = token_stats.contrast_tokens(k)

  def loss(scored: Scored, aux: Aux) -> Loss:
    contrast_BK = masked.sum_T(
      token_contrast(scored, aux.rows, k, detach), scored.mask_BKT
    )
    return _unlikelihood.likelihood_and_penalty(
      "cringe", scored, alpha * contrast_BK[:, 0]
    )

  return Objective(
    name="cringe",
    hparams={"alpha": alpha, "k": k, "detach": detach},
    layout=Layout.RATED,
    stats=frozenset({token_stats.LOGP, stat}),
    loss=loss,
    columns=frozenset({"desirable_BK"}),
    prepare=prepare_contrast("cringe", k),
  )
