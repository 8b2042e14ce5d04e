"""Preference model: a scalar head over both completions of a pair."""

import jax
import jax.numpy as jnp

from xpo_jax.ops import links, masked, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored


def preference(scored: Scored) -> Array:
  """P(chosen beats rejected), averaged over both presentation orders, `[B]`.

  (sigma(l_01) + 1 - sigma(l_10)) / 2: swapping the completions gives exactly 1 minus
  this, for any position bias of the model. The record: see `preference_model`.
  """
  logit_BK = masked.last(scored.reward_head_BKT, scored.mask_BKT)
  first_B = jax.nn.sigmoid(logit_BK[:, 0])
  second_B = jax.nn.sigmoid(-logit_BK[:, 1])
  return (first_B + second_B) / 2


def preference_model() -> Objective:
  """Preference model: P(y beats y') from a head over both completions.

  L = 1/2 [-log sigma(l_01) - log sigma(-l_10)]

  The record: both columns hold the prompt and BOTH completions, column 0 the chosen one
  first, column 1 the rejected one first; the scalar head at the last token of each is
  l, the log odds that the completion shown first is the better one. Unlike a difference
  of rewards it can be intransitive, as Nash learning requires.

  Paper: Munos et al. 2023 (Nash learning from human feedback), arXiv:2312.00886.
    Survey 3.11.
  Departs from the paper: each pair is shown in both orders and the losses are averaged,
    which a random order equals in expectation. Antisymmetry is not trained:
    `preference` averages the two orders wherever a probability is used.
  Reduction: the head's output at the last token, the EOS after the second completion,
    which it has read; mean over both orders, then over pairs.

  Returns:
    Objective; layout PAIR (as above); stats REWARD_HEAD.
    Terms: `preference_model`.
    Metrics: win_rate (mean P of the chosen, both orders averaged), reward_accuracy
    (fraction of pairs where it is over one half; a tie counts one half), first_rate
    (mean P of the completion shown first; 0.5 without a position bias).

  Example: always preferring the first completion carries no information.
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> one = np.ones((1, 2, 1))
    >>> biased = scored.from_token_logps(None, one, reward_head_BKT=5 * one)
    >>> float(
    ...   scored.evaluate(objectives.preference_model(), biased).metrics["win_rate"]
    ... )
    0.5
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    logit_BK = masked.last(scored.reward_head_BKT, scored.mask_BKT)
    loss_B = (links.logistic(logit_BK[:, 0]) + links.logistic(-logit_BK[:, 1])) / 2
    win_rate_B = preference(scored)
    metrics = {
      "win_rate": scored.mean_B(win_rate_B),
      "reward_accuracy": scored.mean_B((1 + jnp.sign(win_rate_B - 0.5)) / 2),
      "first_rate": scored.mean_B(jax.nn.sigmoid(logit_BK).mean(1)),
    }
    return Loss({"preference_model": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="preference_model",
    hparams={},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.REWARD_HEAD}),
    loss=loss,
  )
