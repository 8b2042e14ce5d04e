"""The decoder with a key-value cache: prompts once, then one token per branch.

The K completions of a prompt read the prompt's keys and values from one copy; each
holds only its own tokens beside it.
"""

import jax
import jax.numpy as jnp
from flax import struct

from xpo_jax.models import transformer
from xpo_jax.models.config import Config
from xpo_jax.types import Array, Params


@struct.dataclass
class Prompts:
  """What the branches share; `g` the key-value heads and `h` their dimensions.

  Attributes:
    key, value: `[N, B, g, P, h]`, of all layers.
    length_B: tokens of each prompt.
  """

  key: Array
  value: Array
  length_B: Array


@struct.dataclass
class Branches:
  """Keys and values of the branches' own tokens, `[N, B, K, g, T, h]`."""

  key: Array
  value: Array


def prefill(
  config: Config, params: Params, prompt_BP: Array, length_B: Array
) -> tuple[Array, Prompts]:
  """Reads the prompts, padded on the right.

  Args:
    config: of the decoder.
    params: of the decoder.
    prompt_BP: token ids.
    length_B: of each prompt, at least 1.

  Returns:
    hidden_BD at each prompt's last token, after the final norm; the cache.
  """
  P = prompt_BP.shape[1]
  rows = transformer.Rows.plain(prompt_BP, jnp.arange(P)[None] < length_B[:, None])
  mask = transformer.attention_mask(rows)
  turn = transformer.angles(config, rows.position_RL)

  def attend(query, key, value):
    mixed = transformer.attend(query, key, value, mask)
    return mixed, (key.swapaxes(1, 2), value.swapaxes(1, 2))

  x = transformer.embed(config, params, rows.tokens_RL, rows.position_RL)
  x, (key, value) = jax.lax.scan(
    lambda x, layer: transformer.block(config, layer, x, turn, attend),
    x,
    params["blocks"],
  )
  last = jnp.take_along_axis(x, (length_B - 1)[:, None, None], axis=1)[:, 0]
  hidden_BD = transformer.norm(config, params["final_norm"], last)
  return hidden_BD, Prompts(key, value, length_B)


def zeros(prompts: Prompts, B: int) -> Prompts:
  """The cache of B other prompts as wide, none of which was read."""
  N, _, *sizes = prompts.key.shape
  key = jnp.zeros((N, B, *sizes), prompts.key.dtype)
  return Prompts(key, key, jnp.zeros(B, jnp.int32))


def copy(to: Prompts, at: Array, prompts: Prompts, b: Array) -> Prompts:
  """Puts the cache of prompt `b` at place `at` of another."""
  return Prompts(
    to.key.at[:, at].set(prompts.key[:, b]),
    to.value.at[:, at].set(prompts.value[:, b]),
    to.length_B.at[at].set(prompts.length_B[b]),
  )


def branches(prompts: Prompts, completions: int, max_tokens: int) -> Branches:
  """Room for K branches of T tokens beside each prompt."""
  N, B, g, _, h = prompts.key.shape
  room = jnp.zeros((N, B, completions, g, max_tokens, h), prompts.key.dtype)
  return Branches(room, room)


def decode(
  config: Config,
  params: Params,
  token_BK: Array,
  at_BK: Array,
  prompts: Prompts,
  branches: Branches,
) -> tuple[Array, Branches]:
  """Reads the next token of every branch.

  Args:
    config: of the decoder.
    params: of the decoder.
    token_BK: token ids.
    at_BK: how many tokens each branch holds already, less than T.
    prompts: of `prefill`.
    branches: of `branches` or of the last `decode`.

  Returns:
    hidden_BKD, after the final norm, which predicts the token after it; the cache.
  """
  position_BK = prompts.length_B[:, None] + at_BK
  turn = transformer.angles(config, position_BK)
  P, T = prompts.key.shape[3], branches.key.shape[4]
  in_prompt = jnp.arange(P)[None] < prompts.length_B[:, None]
  in_branch = jnp.arange(T)[None, None] < at_BK[..., None]

  def step(x, xs):
    layer, prompt_key, prompt_value, old_key, old_value = xs

    def attend(query, key, value):
      B, K, H, h = query.shape
      g = key.shape[2]
      query = query.reshape(B, K, g, H // g, h) * h**-0.5
      wide = jnp.promote_types(query.dtype, jnp.float32)
      # Three stretches under one softmax: prompt, earlier tokens, this token. The
      # cache is only read here and written once for all layers below.
      score = [
        jnp.einsum("bkgmh,bgph->bkgmp", query, prompt_key, preferred_element_type=wide),
        jnp.einsum("bkgmh,bkgth->bkgmt", query, old_key, preferred_element_type=wide),
        jnp.einsum("bkgmh,bkgh->bkgm", query, key, preferred_element_type=wide),
      ]
      score[0] = jnp.where(in_prompt[:, None, None, None], score[0], transformer.MASKED)
      score[1] = jnp.where(in_branch[:, :, None, None], score[1], transformer.MASKED)
      score = jnp.concatenate([*score[:2], score[2][..., None]], axis=-1)
      weight = jax.nn.softmax(score, axis=-1).astype(value.dtype)
      mixed = (
        jnp.einsum("bkgmp,bgph->bkgmh", weight[..., :P], prompt_value)
        + jnp.einsum("bkgmt,bkgth->bkgmh", weight[..., P : P + T], old_value)
        + weight[..., P + T :] * value[:, :, :, None]
      )
      return mixed.reshape(B, K, H, h), (key, value)

    return transformer.block(config, layer, x, turn, attend)

  x = transformer.embed(config, params, token_BK, position_BK)
  xs = (params["blocks"], prompts.key, prompts.value, branches.key, branches.value)
  x, (key, value) = jax.lax.scan(step, x, xs)
  grown = Branches(
    _write(branches.key, key, at_BK), _write(branches.value, value, at_BK)
  )
  return transformer.norm(config, params["final_norm"], x), grown


def _write(cache: Array, new: Array, at_BK: Array) -> Array:
  """Puts `[N, B, K, g, h]` at its branches' places in `[N, B, K, g, T, h]`."""
  B, K = at_BK.shape
  b, k = jnp.arange(B)[:, None], jnp.arange(K)[None]
  # Advanced indices apart from one another come first: [B, K, N, g, h].
  new = jnp.moveaxis(new, 0, 2)
  return cache.at[:, b, k, :, at_BK].set(new, mode="promise_in_bounds")
