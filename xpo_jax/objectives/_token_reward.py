"""Token-level reward models: labelled steps, or a target per token."""

import jax.numpy as jnp

from xpo_jax.ops import links, masked, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored

_STATS = frozenset({token_stats.REWARD_HEAD})
_COLUMNS = frozenset({"reward_BKT"})


def token_regression() -> Objective:
  """Token-level reward regression: (v_t - reward_t)^2, a mean over all tokens.

  With v_t the scalar head at token t, which it has read. Every completion token has a
  target, 0 included. Layout RATED; stats REWARD_HEAD; columns reward_BKT; reads tokens.
  Terms: `token_regression`.
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    weight_BKT = _tokens(scored)
    error_BKT = scored.reward_head_BKT - scored.reward_BKT
    error_BKT = masked.zero_padding(error_BKT, weight_BKT)
    square = Mean((error_BKT**2 * weight_BKT).sum(), weight_BKT.sum())
    return Loss({"token_regression": square}, {})

  return Objective(
    name="token_regression",
    hparams={},
    layout=Layout.RATED,
    stats=_STATS,
    loss=loss,
    columns=_COLUMNS,
    reads_tokens=True,
  )


def _tokens(scored: Scored) -> Array:
  """1 on the completion tokens that count, `[B, K, T]`."""
  weight_BK = scored.present_BK * scored.weight_B[:, None]
  return scored.mask_BKT * weight_BK[..., None]


def token_reward() -> Objective:
  """Token-level reward model: a correctness logit at labelled tokens.

  L = - sum over labelled tokens of log sigma(sign(label_t) v_t) / their number
  with v the scalar head; reward_BKT > 0 is correct, < 0 incorrect, 0 unlabelled.

  A process reward model labels the token that ends each step (a separator, EOS) and no
  other; one label at the last token gives an outcome reward model. v_t is read at
  token t itself, from the step with its separator.

  Paper: Lightman et al. 2023 ("Let's verify step by step"), arXiv:2305.20050.
    Survey 2.1.3.
  Departs from the paper: the paper's third label, neutral, is unlabelled here. TRL has
    a two-way softmax, whose difference of logits is v, and an option to keep the last
    step's label only in training and not in evaluation. Targets instead of labels:
    `token_regression`.
  Reduction: one mean over the labelled tokens of the batch.

  Returns:
    Objective; layout RATED; stats REWARD_HEAD; columns reward_BKT; reads tokens.
    Terms: `token_reward`.
    Metrics: token_accuracy (fraction of labelled tokens; v = 0 counts one half).

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> one = np.ones((1, 1, 4))
    >>> steps = scored.from_token_logps(
    ...   None, one, reward_head_BKT=0 * one, reward_BKT=[[[0, 1, 0, -1]]]
    ... )
    >>> round(float(scored.evaluate(objectives.token_reward(), steps).loss), 4)
    0.6931
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    token_BKT = _tokens(scored)
    sign_BKT = jnp.sign(masked.zero_padding(scored.reward_BKT, token_BKT))
    weight_BKT = token_BKT * jnp.abs(sign_BKT)
    margin_BKT = sign_BKT * masked.zero_padding(scored.reward_head_BKT, token_BKT)
    nll = Mean((links.logistic(margin_BKT) * weight_BKT).sum(), weight_BKT.sum())
    correct_BKT = jnp.heaviside(margin_BKT, 0.5)
    metrics = {"token_accuracy": nll.replace(total=(correct_BKT * weight_BKT).sum())}
    return Loss({"token_reward": nll}, metrics)

  return Objective(
    name="token_reward",
    hparams={},
    layout=Layout.RATED,
    stats=_STATS,
    loss=loss,
    columns=_COLUMNS,
    reads_tokens=True,
  )
