"""The decoder with a key-value cache: prompts once, then one token per branch.

The K completions of a prompt read the prompt's keys and values from one copy; each
holds only its own tokens beside it. A step scans the layers. Weights and the prompts'
cache are scanned over; the branches' cache is carried, so that each layer writes one
place of it and no step copies it. That place is the same in all branches, whatever
their lengths: the cache is a ring, in which the next place is that of the next step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from xpo_jax.models import transformer
from xpo_jax.models.config import Config
from xpo_jax.ops import attention, capping
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import rules
from xpo_jax.types import Array, Params


@struct.dataclass
class PromptCache:
  """Keys and values of the prompts, read by all their branches.

  `N` are the layers, `g` the key-value heads and `h` their dimensions.

  Attributes:
    key, value: `[N, B, g, P, h]`.
    length_B: tokens of each prompt.
  """

  key: Array
  value: Array
  length_B: Array


@struct.dataclass
class Branches:
  """Keys and values of the branches' own tokens.

  Attributes:
    key, value: `[N, B, K, g, T, h]`; of every branch the place before `next`, modulo T,
      has its last token, the one before that its last but one.
    next: where the next token of every branch is written; a number.
  """

  key: Array
  value: Array
  next: Array


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
  return hidden_BD, PromptCache(key, value, length_B)


def zeros(prompts: PromptCache, B: int) -> PromptCache:
  """The cache of B other prompts as wide, none of which was read."""
  N, _, *sizes = prompts.key.shape
  empty = jnp.zeros((N, B, *sizes), prompts.key.dtype)
  return PromptCache(empty, empty, jnp.zeros(B, prompts.length_B.dtype))


def copy(to: PromptCache, at: Array, prompts: PromptCache, b: Array) -> PromptCache:
  """Copies the cache of prompt `b` to row `at` of `to`."""
  return PromptCache(
    key=to.key.at[:, at].set(prompts.key[:, b]),
    value=to.value.at[:, at].set(prompts.value[:, b]),
    length_B=to.length_B.at[at].set(prompts.length_B[b]),
  )


def branches(
  prompts: PromptCache, completions: int, max_completion_tokens: int
) -> Branches:
  """Room for K branches of T tokens beside each prompt."""
  N, B, g, _, h = prompts.key.shape
  shape = (N, B, completions, g, max_completion_tokens, h)
  room = jnp.zeros(shape, prompts.key.dtype)
  return Branches(room, room, jnp.int32(0))


def pin(mesh: Mesh | None, caches: Any) -> Any:
  """Constrains a tree of caches to be split by rows, and by key-value heads where the
  mesh divides them, under jit; no mesh, no effect."""

  def one(x: Array) -> Array:
    if mesh is None or x.ndim < 2:
      return rules.pin(mesh, x, *[meshes.ROWS] * x.ndim)
    # Layers, rows, perhaps completions; then heads, positions, dimensions.
    heads = rules.kv_head_axis(mesh, x.shape[-3])
    between = [None] * (x.ndim - 5)
    return rules.pin(mesh, x, None, meshes.ROWS, *between, heads, None, None)

  return jax.tree.map(one, caches)


def _in_memory(x: Array, mesh: Mesh | None) -> Array:
  """A cache as it lies in a TPU's memory, positions along a register: the compiler by
  itself lays it out for the step's one write, and turns it around for each read."""
  if meshes.platform(mesh) != "tpu":
    return x
  *others, position, dimension = range(x.ndim)
  return with_layout_constraint(x, Layout((*others, dimension, position)))


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
    params: of the decoder.
    token_BK: token ids.
    at_BK: number of tokens already in each branch, less than T: one more than at the
      last call, or 0, where the branch's place is taken by another.
    prompts: of `prefill`.
    branches: of `branches` or of the last `decode`.
    mesh: see `transformer.states`.

  Returns:
    hidden_BKD, after the final norm, which predicts the token after it; the cache.
  """
  position_BK = prompts.length_B[:, None] + at_BK
  tables = transformer.angles(config, position_BK)
  P, T = prompts.key.shape[3], branches.key.shape[4]
  in_prompt = (jnp.arange(P)[None] < prompts.length_B[:, None])[:, None]
  # Which token of its branch each place holds; beyond the last: of an older branch.
  own_position = (at_BK[..., None] - branches.next + jnp.arange(T)[None, None]) % T
  in_branch = own_position <= at_BK[..., None]
  prompt_position = jnp.arange(P)[None, None]

  def step(carry, layer):
    x, own = carry
    n, layer_params, kinds, prompt_key, prompt_value = layer
    near = attention.within(position_BK[..., None], prompt_position, kinds.window_N)
    own_near = attention.within(at_BK[..., None], own_position, kinds.window_N)

    def attend(query, key, value):
      B, K, H, h = query.shape
      g = key.shape[2]
      query = query.reshape(B, K, g, H // g, h) * transformer.attention_scale(config)
      wide = jnp.promote_types(query.dtype, jnp.float32)
      grown = [
        jax.lax.dynamic_update_slice(
          cache, new[None, :, :, :, None], (n, 0, 0, 0, branches.next, 0)
        )
        for cache, new in zip(own, (key, value), strict=True)
      ]
      grown = [_in_memory(cache, mesh) for cache in grown]
      key, value = (_in_memory(cache[n], mesh) for cache in grown)
      # Two stretches under one softmax: the prompt and the branch.
      score = [
        jnp.einsum("bkgmh,bgph->bkgmp", query, prompt_key, preferred_element_type=wide),
        jnp.einsum("bkgmh,bkgth->bkgmt", query, key, preferred_element_type=wide),
      ]
      for i, seen in enumerate((in_prompt & near, in_branch & own_near)):
        capped = capping.soft_cap(score[i], config.attention_softcap)
        score[i] = jnp.where(seen[:, :, None, None], capped, attention.MASKED)
      sink_H = transformer.sink(layer_params)
      sink = None if sink_H is None else sink_H.reshape(1, 1, g, H // g)
      weight = attention.weights(jnp.concatenate(score, axis=-1), sink)
      weight = weight.astype(value.dtype)
      mixed = jnp.einsum("bkgmp,bgph->bkgmh", weight[..., :P], prompt_value)
      mixed += jnp.einsum("bkgmt,bkgth->bkgmh", weight[..., P:], value)
      return mixed.reshape(B, K, H, h), grown

    rotation = transformer.layer_angles(tables, kinds.rotary_N)
    x, own, _ = transformer.block(config, layer_params, x, rotation, attend, mesh)
    return (x, pin(mesh, own)), None

  x = transformer.embed(config, params, token_BK, position_BK)
  layers = (
    jnp.arange(config.layers),
    params["blocks"],
    transformer.layer_kinds(config),
    prompts.key,
    prompts.value,
  )
  (x, own), _ = jax.lax.scan(step, (x, [branches.key, branches.value]), layers)
  grown = Branches(*own, (branches.next + 1) % T)
  return transformer.norm(config, params["final_norm"], x), grown
