"""One token from logits: temperature, truncation, a draw, and log-probs.

A draw is a function of the logits and of two uniform variates, which depend on the
key, the row's number, the completion's and the token's, and on nothing else.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.ops import preference_games, token_stats
from xpo_jax.types import Array

_BLOCK = 128  # tokens drawn among at once, see `_draw`


class Rule(NamedTuple):
  """How tokens are drawn. Leaves may be traced: other numbers compile nothing.

  Attributes:
    stop: token ids that end a completion, a vector.
    temperature: divides the logits.
    top_k, top_p: of the truncation, or None.
    share: the reference's exponent in a geometric mixture, or None.
    exploration_temperature: divides the logits that are drawn from instead, or None.
    num_tokens: ids from here on are not drawn; None: all are.
    weight: the reference's weight in an arithmetic mixture, or None.
  """

  stop: Array
  temperature: Array
  top_k: Array | None
  top_p: Array | None
  share: Array | None
  exploration_temperature: Array | None
  num_tokens: Array | None = None
  weight: Array | None = None


class Token(NamedTuple):
  """A token for each branch, with its log-probs; see `decode_state.Samples`."""

  token_BK: Array
  logp_BK: Array
  proposal_logp_BK: Array


def uniform(
  key: Array, row_B: Array, completions: int, max_completion_tokens: int
) -> Array:
  """Two uniforms for each token, `[B, K, T, 2]`, which neither B, K nor T moves."""

  def one(row: Array, k: Array) -> Array:
    # Bits are by position: a longer T only adds to them.
    folded = jax.random.fold_in(jax.random.fold_in(key, row), k)
    return jax.random.uniform(folded, (max_completion_tokens, 2))

  over_k = jax.vmap(one, (None, 0))
  return jax.vmap(over_k, (0, None))(row_B, jnp.arange(completions))


def choose(
  logits: tuple[Array, ...], uniform_BK2: Array, rule: Rule, *, greedy: bool
) -> Token:
  """Draws the next token of every branch.

  Args:
    logits: the policy's `[B, K, V]`; in a mixture the reference's after them.
    uniform_BK2: uniform variates in [0, 1).
    rule: of the draw.
    greedy: take the likeliest token instead.
  """
  x_BKV = logits[0] / rule.temperature
  x_BKV = x_BKV - x_BKV.max(-1, keepdims=True)
  p_BKV = jnp.exp(x_BKV)  # not normalised: the likeliest token has 1
  q_BKV, weight_BKV = x_BKV, p_BKV  # what is drawn from
  limited = rule.num_tokens is not None
  if len(logits) > 1 or rule.exploration_temperature is not None or limited:
    divisor = (
      rule.temperature
      if rule.exploration_temperature is None
      else rule.exploration_temperature
    )
    q_BKV = logits[0] / divisor
    if rule.share is not None:
      q_BKV = preference_games.mixture(q_BKV, logits[1] / divisor, rule.share)
    if rule.weight is not None:
      both = (jax.nn.log_softmax(x_BKV / divisor) for x_BKV in logits)
      q_BKV = token_stats.log_mixture(*both, rule.weight)
    if limited:
      there_V = jnp.arange(q_BKV.shape[-1]) < rule.num_tokens
      q_BKV = jnp.where(there_V[None, None], q_BKV, -jnp.inf)
    q_BKV = q_BKV - q_BKV.max(-1, keepdims=True)
    weight_BKV = jnp.exp(q_BKV)
  truncated_BKV = _truncate(weight_BKV, rule.top_k, rule.top_p)
  token_BK = _first_maximum(q_BKV) if greedy else _draw(truncated_BKV, uniform_BK2)
  logp_BK = _pick(x_BKV, token_BK) - jnp.log(p_BKV.sum(-1))
  if greedy:
    return Token(token_BK, logp_BK, jnp.zeros_like(logp_BK))
  proposal_logp_BK = _pick(q_BKV, token_BK) - jnp.log(truncated_BKV.sum(-1))
  return Token(token_BK, logp_BK, proposal_logp_BK)


def _first_maximum(x_BKV: Array) -> Array:
  """What `argmax` gives, in a fifth of its time on a CPU."""
  V = x_BKV.shape[-1]
  best_BKV = x_BKV == x_BKV.max(-1, keepdims=True)
  return jnp.where(best_BKV, jnp.arange(V)[None, None], V).min(-1)


def _pick(x_BKV: Array, token_BK: Array) -> Array:
  # By comparison: a gather would collect logits that are sharded over V.
  at_BKV = jnp.arange(x_BKV.shape[-1])[None, None] == token_BK[..., None]
  return jnp.where(at_BKV, x_BKV, 0).sum(-1)


def _truncate(p_BKV: Array, top_k: Array | None, top_p: Array | None) -> Array:
  """Zeroes the tokens outside the proposal; `p_BKV` is 1 at the likeliest."""
  if top_k is not None:
    p_BKV = _at_least(p_BKV, lambda truncated_BKV: (truncated_BKV > 0).sum(-1) >= top_k)
  if top_p is not None:
    enough_BK = top_p * p_BKV.sum(-1)
    p_BKV = _at_least(p_BKV, lambda truncated_BKV: truncated_BKV.sum(-1) >= enough_BK)
  return p_BKV


def _at_least(p_BKV: Array, enough: Callable[[Array], Array]) -> Array:
  """Keeps the likeliest tokens, as few as are enough, and ties with the last.

  The least kept probability is found by bisection on the bits of a float, exactly:
  floats >= 0 are ordered as their bits are. 31 sums over V are far cheaper than one
  sort, and need no collection of a sharded V.
  """

  def keep(bits_BK: Array) -> Array:
    least_BK = jax.lax.bitcast_convert_type(bits_BK, jnp.float32)
    return jnp.where(p_BKV >= least_BK[..., None], p_BKV, 0)

  def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low_BK, high_BK = bounds  # low is enough, above high is not
    middle_BK = high_BK - (high_BK - low_BK) // 2
    good_BK = enough(keep(middle_BK))
    low_BK = jnp.where(good_BK, middle_BK, low_BK)
    return low_BK, jnp.where(good_BK, high_BK, middle_BK - 1)

  low_BK = jnp.zeros(p_BKV.shape[:-1], jnp.int32)
  high_BK = jnp.full_like(low_BK, np.float32(1).view(np.int32))
  return keep(jax.lax.fori_loop(0, 31, halve, (low_BK, high_BK))[0])


def _draw(p_BKV: Array, uniform_BK2: Array) -> Array:
  """A token by inverse distribution function, first its block, then within it.

  Two uniforms a token instead of V Gumbel draws, and no cumulative sum over V.
  """
  *lead, V = p_BKV.shape
  pad = [(0, 0)] * len(lead) + [(0, -V % _BLOCK)]
  p = jnp.pad(p_BKV, pad).reshape(*lead, -1, _BLOCK)
  block_BK = _invert(p.sum(-1), uniform_BK2[..., 0])
  within = jnp.take_along_axis(p, block_BK[..., None, None], axis=-2)[..., 0, :]
  return block_BK * _BLOCK + _invert(within, uniform_BK2[..., 1])


def _invert(p: Array, uniform: Array) -> Array:
  """First index at which the running sum exceeds `uniform` (< 1) of the total."""
  total = jnp.cumsum(p, axis=-1)
  return (total <= uniform[..., None] * total[..., -1:]).sum(-1)
