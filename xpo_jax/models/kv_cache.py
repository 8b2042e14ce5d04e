"""The decoder with a key-value cache: prompts once, then one token per branch.

The K completions of a prompt read the prompt's keys and values from one copy; each
holds only its own tokens beside it. A step goes through the layers one by one, each
with weights and caches of its own: a scan would first copy them out of their stack.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from xpo_jax.models import transformer
from xpo_jax.models.config import Config
from xpo_jax.ops import attention, capping
from xpo_jax.types import Array, Params


@struct.dataclass
class PromptCache:
  """Keys and values of the prompts, read by all their branches.

  `g` are the key-value heads and `h` their dimensions.

  Attributes:
    key, value: `[B, g, P, h]` of each layer.
    length_B: tokens of each prompt.
  """

  key: tuple[Array, ...]
  value: tuple[Array, ...]
  length_B: Array


@struct.dataclass
class Branches:
  """Keys and values of the branches' own tokens, `[B, K, g, T, h]` of each layer."""

  key: tuple[Array, ...]
  value: tuple[Array, ...]


def prefill(
  config: Config,
  params: Params,
  prompt_BP: Array,
  length_B: Array,
  mesh: Mesh | None = None,
) -> tuple[Array, PromptCache]:
  """Reads the prompts, padded on the right.

  Args:
    config: of the decoder.
    params: of the decoder.
    prompt_BP: token ids.
    length_B: of each prompt, at least 1.
    mesh: see `transformer.states`.

  Returns:
    hidden_BD at each prompt's last token, after the final norm; the cache.
  """
  P = prompt_BP.shape[1]
  rows = transformer.Rows.plain(prompt_BP, jnp.arange(P)[None] < length_B[:, None])
  x, (key, value) = transformer.run_blocks(
    config, params, rows, lambda *kv: tuple(x.swapaxes(1, 2) for x in kv[:2]), mesh
  )
  last = jnp.take_along_axis(x, (length_B - 1)[:, None, None], axis=1)[:, 0]
  hidden_BD = transformer.norm(config, params["final_norm"], last)
  return hidden_BD, PromptCache(tuple(key), tuple(value), length_B)


def zeros(prompts: PromptCache, B: int) -> PromptCache:
  """The cache of B other prompts as wide, none of which was read."""
  return jax.tree.map(lambda x: jnp.zeros((B, *x.shape[1:]), x.dtype), prompts)


def copy(to: PromptCache, at: Array, prompts: PromptCache, b: Array) -> PromptCache:
  """Copies the cache of prompt `b` to row `at` of `to`."""
  return jax.tree.map(lambda old, new: old.at[at].set(new[b]), to, prompts)


def branches(
  prompts: PromptCache, completions: int, max_completion_tokens: int
) -> Branches:
  """Room for K branches of T tokens beside each prompt."""

  def room(x: Array) -> Array:
    B, g, _, h = x.shape
    return jnp.zeros((B, completions, g, max_completion_tokens, h), x.dtype)

  return Branches(*jax.tree.map(room, (prompts.key, prompts.value)))


def layers(params: Params) -> Params:
  """The parameters of a decoder with those of its blocks in a list of layers."""
  blocks = params["blocks"]
  count = len(jax.tree.leaves(blocks)[0])
  return params | {
    "blocks": [jax.tree.map(lambda w, i=i: w[i], blocks) for i in range(count)]
  }


def decode(
  config: Config,
  params: Params,
  token_BK: Array,
  at_BK: Array,
  prompts: PromptCache,
  branches: Branches,
  mesh: Mesh | None = None,
) -> tuple[Array, Branches]:
  """Reads the next token of every branch.

  Args:
    config: of the decoder.
    params: of `layers`.
    token_BK: token ids.
    at_BK: number of tokens already in each branch, less than T.
    prompts: of `prefill`.
    branches: of `branches` or of the last `decode`.
    mesh: see `transformer.states`.

  Returns:
    hidden_BKD, after the final norm, which predicts the token after it; the cache.
  """
  position_BK = prompts.length_B[:, None] + at_BK
  tables = transformer.angles(config, position_BK)
  kinds = transformer.layer_kinds(config)
  P, T = prompts.key[0].shape[2], branches.key[0].shape[3]
  in_prompt = (jnp.arange(P)[None] < prompts.length_B[:, None])[:, None]
  in_branch = jnp.arange(T)[None, None] <= at_BK[..., None]
  prompt_position, own_position = jnp.arange(P)[None, None], jnp.arange(T)[None, None]

  def step(x, layer, kinds, prompt_key, prompt_value, own_key, own_value):
    near = attention.within(position_BK[..., None], prompt_position, kinds.window_N)
    own_near = attention.within(at_BK[..., None], own_position, kinds.window_N)

    def attend(query, key, value):
      B, K, H, h = query.shape
      g = key.shape[2]
      query = query.reshape(B, K, g, H // g, h) * transformer.attention_scale(config)
      wide = jnp.promote_types(query.dtype, jnp.float32)
      key, value = _write(own_key, key, at_BK), _write(own_value, value, at_BK)
      # Two stretches under one softmax: the prompt and the branch.
      score = [
        jnp.einsum("bkgmh,bgph->bkgmp", query, prompt_key, preferred_element_type=wide),
        jnp.einsum("bkgmh,bkgth->bkgmt", query, key, preferred_element_type=wide),
      ]
      for i, seen in enumerate((in_prompt & near, in_branch & own_near)):
        capped = capping.soft_cap(score[i], config.attention_softcap)
        score[i] = jnp.where(seen[:, :, None, None], capped, attention.MASKED)
      sink_H = transformer.sink(layer)
      sink = None if sink_H is None else sink_H.reshape(1, 1, g, H // g)
      weight = attention.weights(jnp.concatenate(score, axis=-1), sink)
      weight = weight.astype(value.dtype)
      mixed = jnp.einsum("bkgmp,bgph->bkgmh", weight[..., :P], prompt_value)
      mixed += jnp.einsum("bkgmt,bkgth->bkgmh", weight[..., P:], value)
      return mixed.reshape(B, K, H, h), (key, value)

    rotation = transformer.layer_angles(tables, kinds.rotary_N)
    x, own, _ = transformer.block(config, layer, x, rotation, attend, mesh)
    return x, own

  x = transformer.embed(config, params, token_BK, position_BK)
  caches = (prompts.key, prompts.value, branches.key, branches.value)
  grown = []
  for n, (layer, *layer_caches) in enumerate(
    zip(params["blocks"], *caches, strict=True)
  ):
    kind = jax.tree.map(lambda kind_N, n=n: kind_N[n], kinds)
    x, own = step(x, layer, kind, *layer_caches)
    grown.append(own)
  hidden_BKD = transformer.norm(config, params["final_norm"], x)
  return hidden_BKD, Branches(*zip(*grown, strict=True))


def _write(cache: Array, new: Array, at_BK: Array) -> Array:
  """Puts `[B, K, g, h]` at its branches' places in `[B, K, g, T, h]`."""

  def put(cache: Array, new: Array, at: Array) -> Array:
    return cache.at[:, at].set(new, mode="promise_in_bounds")

  return jax.vmap(jax.vmap(put))(cache, new, at_BK)
