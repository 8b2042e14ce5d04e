"""Decoder of Llama, GPT-NeoX and GPT-2 as pure functions of a parameter dict.

Parameters are a nested dict; the leaves of `"blocks"` are stacked over layers and
applied by one `lax.scan`, so that the program's size does not depend on depth. A batch
is a `Rows` record: several prompt groups per row, each prompt once with its completions
as branches. `kv_cache.py` applies the same block with a cache instead of a mask.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from xpo_jax.models.config import Activation, Config, Norm
from xpo_jax.types import Array, Params

MASKED = -1e30  # finite: a padding row attends to nothing and must not be NaN


_ACTIVATIONS = {
  Activation.SILU: jax.nn.silu,
  Activation.GELU: functools.partial(jax.nn.gelu, approximate=False),
  Activation.GELU_TANH: functools.partial(jax.nn.gelu, approximate=True),
}


@struct.dataclass
class Rows:
  """Packed rows.

  Position i attends to j iff j <= i, both are in one segment (not padding), and j is in
  the prompt or in i's branch.

  Attributes:
    tokens_RL: token ids.
    segment_RL: 0 on padding, else the index of the prompt group in the row, from 1.
    branch_RL: 0 on the prompt, k + 1 on completion k.
    position_RL: position in the text; each branch continues its prompt.
  """

  tokens_RL: Array
  segment_RL: Array
  branch_RL: Array
  position_RL: Array

  @classmethod
  def plain(cls, tokens_RL: Array, mask_RL: Array) -> "Rows":
    """Builds rows of one text each, padded on either side (`mask_RL` 0)."""
    segment_RL = (jnp.asarray(mask_RL) != 0).astype(jnp.int32)
    position_RL = jnp.maximum(jnp.cumsum(segment_RL, axis=1) - 1, 0)
    return cls(
      jnp.asarray(tokens_RL), segment_RL, jnp.zeros_like(segment_RL), position_RL
    )


class Model(NamedTuple):
  """A language model as functions; a user's model is passed in the same form.

  Attributes:
    config: its configuration; hashable.
    init: `key -> params`.
    hidden: `(params, Rows) -> hidden_RLD`, after the final norm.
    head: `params -> head_VD`; logits are `hidden @ head.T`.
    logical_axes: `() ->` pytree like params, a tuple of axis names for each leaf.
  """

  config: Any
  init: Callable[[Array], Params]
  hidden: Callable[[Params, Rows], Array]
  head: Callable[[Params], Array]
  logical_axes: Callable[[], Any]


@functools.lru_cache
def model(config: Config) -> Model:
  """Builds the decoder of a config; equal configs share one object and compilation."""
  return Model(
    config=config,
    init=functools.partial(_init, config),
    hidden=functools.partial(_hidden, config),
    head=functools.partial(head, config),
    logical_axes=lambda: jax.tree.map(lambda w: w.axes, weights(config)),
  )


# --- Parameters


@dataclasses.dataclass(frozen=True)
class Weight:
  """Shape, axis names and initialisation (std, or a constant) of a parameter."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  std: float = 0.0
  constant: float = 0.0


def weights(config: Config) -> dict[str, Any]:
  """Describes the parameters of a config as a tree of `Weight`."""
  c = config
  sizes = {
    "layers": c.layers,
    "embed": c.width,
    "heads": c.heads,
    "kv_heads": c.kv_heads,
    "head_dim": c.head_dim,
    "mlp": c.mlp_width,
    "vocab": c.vocab,
    "position": c.positions,
  }

  def weight(*axes: str, std: float = 0.0, constant: float = 0.0) -> Weight:
    return Weight(tuple(sizes[a] for a in axes), axes, std, constant)

  def norm_weights(*axes: str) -> dict[str, Weight]:
    scale = {"scale": weight(*axes, constant=1.0)}
    return scale | ({"bias": weight(*axes)} if c.norm is Norm.LAYER else {})

  def linear(inputs: tuple, outputs: tuple, bias: bool, scale: float = 1.0):
    # Preserves variance from layer to layer; the two projections into the residual
    # stream are scaled down by depth, as in GPT-2.
    std = scale / np.sqrt(np.prod([sizes[a] for a in inputs]))
    kernel = {"kernel": weight("layers", *inputs, *outputs, std=float(std))}
    return kernel | ({"bias": weight("layers", *outputs)} if bias else {})

  residual_scale = (2 * c.layers) ** -0.5
  query = ("heads", "head_dim")
  key = ("kv_heads", "head_dim")
  blocks = {
    "attention_norm": norm_weights("layers", "embed"),
    "query": linear(("embed",), query, c.qkv_bias),
    "key": linear(("embed",), key, c.qkv_bias),
    "value": linear(("embed",), key, c.qkv_bias),
    "output": linear(query, ("embed",), c.output_bias, residual_scale),
    "mlp_norm": norm_weights("layers", "embed"),
    "up": linear(("embed",), ("mlp",), c.mlp_bias),
    "down": linear(("mlp",), ("embed",), c.mlp_bias, residual_scale),
  }
  if c.gated:
    blocks["gate"] = linear(("embed",), ("mlp",), c.mlp_bias)
  tree = {
    "embedding": weight("vocab", "embed", std=0.02),
    "blocks": blocks,
    "final_norm": norm_weights("embed"),
  }
  if c.rotary is None:
    tree["position"] = weight("position", "embed", std=0.02)
  if not c.tied:
    tree["head"] = weight("vocab", "embed", std=0.02)
  return tree


def _init(config: Config, key: Array) -> Params:
  return init_params(weights(config), key)


def init_params(tree: dict[str, Any], key: Array) -> Params:
  """Initialises float32 parameters from a tree of `Weight`."""
  leaves, treedef = jax.tree.flatten(tree)
  # One random array, cut into pieces: XLA compiles each random array for half a second.
  sizes = [math.prod(leaf.shape) if leaf.std else 0 for leaf in leaves]
  noise = jax.random.normal(key, (sum(sizes),), jnp.float32)
  pieces = jnp.split(noise, np.cumsum(sizes)[:-1])
  params = [
    leaf.std * piece.reshape(leaf.shape)
    if leaf.std
    else jnp.full(leaf.shape, leaf.constant, jnp.float32)
    for leaf, piece in zip(leaves, pieces, strict=True)
  ]
  return jax.tree.unflatten(treedef, params)


def head(config: Config, params: Params) -> Array:
  """Returns the head `[V, D]` in the compute dtype."""
  head_VD = params["embedding"] if config.tied else params["head"]
  return head_VD.astype(config.compute_dtype)


# --- The block, on any leading axes


def norm(config: Config, params: Params, x: Array) -> Array:
  """Applies RMS or layer normalisation over the last axis, in at least float32."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if config.norm is Norm.LAYER:
    x = x - x.mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + config.norm_eps)
  x = x * _expand(x, params["scale"])
  if config.norm is Norm.LAYER:
    x = x + _expand(x, params["bias"])
  return x.astype(config.compute_dtype)


def _expand(x: Array, y: Array) -> Array:
  """Adds leading axes to `y`, so that it broadcasts over `x`."""
  return y.reshape((1,) * (x.ndim - y.ndim) + y.shape)


def _linear(params: Params, x: Array, contract: int = 1) -> Array:
  kernel = params["kernel"].astype(x.dtype)
  y = jnp.tensordot(x, kernel, axes=contract)
  if "bias" in params:
    y = y + _expand(y, params["bias"].astype(y.dtype))
  if "lora" in params:  # of `lora.attach`
    a, b = (params["lora"][name].astype(x.dtype) for name in ("a", "b"))
    y = y + jnp.tensordot(jnp.tensordot(x, a, axes=contract), b, axes=1)
  return y


def _mlp(config: Config, params: Params, x: Array) -> Array:
  act = _ACTIVATIONS[config.activation]
  if config.gated:
    return _linear(
      params["down"], act(_linear(params["gate"], x)) * _linear(params["up"], x)
    )
  return _linear(params["down"], act(_linear(params["up"], x)))


def block(
  config: Config, params: Params, x: Array, rotation: tuple, attend: Callable
) -> tuple[Array, Any]:
  """Applies one layer.

  Args:
    config: of the decoder.
    params: of the layer.
    x: the layer's input `[..., D]`.
    rotation: of `angles`.
    attend: `(query, key, value) -> (mixed, aux)`.

  Returns:
    The layer's output, and `aux`.
  """
  h = norm(config, params["attention_norm"], x)
  query = _rotate(_linear(params["query"], h), rotation)
  key = _rotate(_linear(params["key"], h), rotation)
  mixed, aux = attend(query, key, _linear(params["value"], h))
  attended = _linear(params["output"], mixed, contract=2)
  if config.parallel_residual:
    h = norm(config, params["mlp_norm"], x)
    return x + attended + _mlp(config, params, h), aux
  x = x + attended
  h = norm(config, params["mlp_norm"], x)
  return x + _mlp(config, params, h), aux


# --- Positions


def _frequencies(config: Config) -> np.ndarray:
  rotary, dim = config.rotary, config.rotary_dim
  freq = rotary.theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
  s = rotary.llama3
  if s is None:
    return freq.astype(np.float32)
  # Llama 3.1: low frequencies are divided by the factor, high ones unchanged, with
  # linear interpolation in (context / wavelength) between them.
  periods = s.original_positions * freq / (2 * np.pi)
  weight = (periods - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
  weight = np.clip(weight, 0.0, 1.0)
  return (freq * (weight + (1 - weight) / s.factor)).astype(np.float32)


def angles(config: Config, position: Array) -> tuple:
  """Computes cosines and sines `[..., 1, rotated / 2]`; () for learned positions."""
  if config.rotary is None:
    return ()
  freq = jnp.asarray(_frequencies(config))
  angle = position[..., None, None].astype(jnp.float32) * _expand(
    position[..., None, None], freq
  )
  return jnp.cos(angle), jnp.sin(angle)


def _rotate(x: Array, rotation: tuple) -> Array:
  if not rotation:
    return x
  cos, sin = rotation
  half = cos.shape[-1]
  a = x[..., :half]
  b = x[..., half : 2 * half]
  unrotated = x[..., 2 * half :]
  rotated = [(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype)]
  return jnp.concatenate([*rotated, unrotated], axis=-1)


def embed(config: Config, params: Params, tokens: Array, position: Array) -> Array:
  """Embeds tokens and, where learned, positions, in the compute dtype."""
  # "fill": an out-of-range id or position gives NaN, which stops the run; JAX's
  # default would clamp it.
  x = params["embedding"].at[tokens].get(mode="fill")
  if config.rotary is None:
    x = x + params["position"].at[position].get(mode="fill")
  return x.astype(config.compute_dtype)


# --- Whole rows


def attention_mask(rows: Rows) -> Array:
  """Computes `[R, L, L]` bool: whether query i (axis 1) attends to key j (axis 2)."""
  segment_RL, branch_RL = rows.segment_RL, rows.branch_RL
  length = segment_RL.shape[1]
  causal = jnp.tril(jnp.ones((1, length, length), bool))
  same_segment = segment_RL[:, :, None] == segment_RL[:, None, :]
  valid = segment_RL[:, None, :] != 0
  in_prompt = branch_RL[:, None, :] == 0
  same_branch = branch_RL[:, :, None] == branch_RL[:, None, :]
  return causal & same_segment & valid & (in_prompt | same_branch)


def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
  """Masked attention: query `[R, L, H, h]`, key and value `[R, L, g, h]`."""
  H, h = query.shape[2:]
  group_size = H // key.shape[2]
  key, value = (jnp.repeat(x, group_size, axis=2) for x in (key, value))
  # Heads before positions: two batched matrix products, which XLA on CPU runs about
  # twice as fast as the same contraction in any other layout.
  query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
  wide = jnp.promote_types(query.dtype, jnp.float32)
  score = jnp.matmul(query * h**-0.5, key.swapaxes(-1, -2), preferred_element_type=wide)
  score = jnp.where(mask[:, None], score, MASKED)
  weight = jax.nn.softmax(score, axis=-1).astype(value.dtype)
  return jnp.matmul(weight, value).transpose(0, 2, 1, 3)


def _hidden(config: Config, params: Params, rows: Rows) -> Array:
  mask = attention_mask(rows)
  rotation = angles(config, rows.position_RL)

  def masked_attend(query, key, value):
    return attend(query, key, value, mask), None

  def step(x, layer):
    return block(config, layer, x, rotation, masked_attend)

  if config.remat:
    step = jax.checkpoint(step, prevent_cse=False)
  x = embed(config, params, rows.tokens_RL, rows.position_RL)
  x, _ = jax.lax.scan(step, x, params["blocks"])
  return norm(config, params["final_norm"], x)
