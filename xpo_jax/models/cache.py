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
class Cache:
  """Keys and values of all layers, `g` the key-value heads and `h` their dimensions.

  Attributes:
    prompt_key, prompt_value: `[N, B, g, P, h]`.
    key, value: `[N, B, K, g, T, h]`, the branches' own tokens.
    length_B: tokens of each prompt.
  """

  prompt_key: Array
  prompt_value: Array
  key: Array
  value: Array
  length_B: Array


def prefill(
  config: Config,
  params: Params,
  prompt_BP: Array,
  length_B: Array,
  completions: int,
  max_tokens: int,
) -> tuple[Array, Cache]:
  """Reads the prompts, padded on the right.

  Args:
    config: of the decoder.
    params: of the decoder.
    prompt_BP: token ids.
    length_B: of each prompt, at least 1.
    completions: K.
    max_tokens: T, room for the branches.

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
  N, B, g, _, h = key.shape
  room = jnp.zeros((N, B, completions, g, max_tokens, h), key.dtype)
  hidden_BD = transformer.norm(config, params["final_norm"], last)
  return hidden_BD, Cache(key, value, room, room, length_B)


def decode(
  config: Config, params: Params, token_BK: Array, t: Array, cache: Cache
) -> tuple[Array, Cache]:
  """Reads token t of every branch.

  Args:
    config: of the decoder.
    params: of the decoder.
    token_BK: token ids.
    t: scalar, how many tokens each branch holds already.
    cache: of `prefill` or of the last `decode`.

  Returns:
    hidden_BKD, after the final norm, which predicts token t + 1; the cache.
  """
  position_BK = jnp.broadcast_to((cache.length_B + t)[:, None], token_BK.shape)
  turn = transformer.angles(config, position_BK)
  P, T = cache.prompt_key.shape[3], cache.key.shape[4]
  in_prompt = jnp.arange(P)[None] < cache.length_B[:, None]
  in_branch = jnp.arange(T) < t

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
      score[1] = jnp.where(
        in_branch[None, None, None, None], score[1], transformer.MASKED
      )
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
  xs = (params["blocks"], cache.prompt_key, cache.prompt_value, cache.key, cache.value)
  x, (key, value) = jax.lax.scan(step, x, xs)
  at = (0, 0, 0, 0, t, 0)
  cache = cache.replace(
    key=jax.lax.dynamic_update_slice(cache.key, key[:, :, :, :, None], at),
    value=jax.lax.dynamic_update_slice(cache.value, value[:, :, :, :, None], at),
  )
  return transformer.norm(config, params["final_norm"], x), cache
