"""Decoder of Hugging Face's families as pure functions of a parameter dict.

Parameters are a nested dict; the leaves of `"blocks"` are stacked over layers and
applied by one `lax.scan`, so that the program's size does not depend on depth; what
else differs between layers (windows, rotary embeddings) is scanned with them. A batch
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
from jax.sharding import Mesh, PartitionSpec

from xpo_jax.models.config import Activation, Config, Norm, QKNorm, Rotary
from xpo_jax.ops import attention, experts
from xpo_jax.ops.experts import Groups
from xpo_jax.ops.tpu import attention as kernels
from xpo_jax.sharding import draws, lookup, products, rules
from xpo_jax.sharding import mesh as meshes
from xpo_jax.types import Array, Params, Routing

# Length of a block of attention, and of the shortest row that is computed by blocks. On
# GPUs a loop of as many steps as the data say waits for the host at each: there all of
# a row is computed.
_BLOCK = {"cpu": (32, 256), "tpu": (128, 512)}
_DRAWN_AT_ONCE = 1 << 26  # most random numbers of an initialisation in one array

HOST_MEMORY = "pinned_host"  # where remat "offload" keeps activations
# What `jax.checkpoint` saves of a block, beside its input.
_POLICIES = {
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims(
    "device", HOST_MEMORY
  ),
}

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
    softcap: c, where the logits are `c tanh(hidden @ head.T / c)`, or None.
    routed: `(params, Rows, mesh or None) -> (hidden_RLD, Routing)` of a mixture of
      experts; else None. `states` calls it, or `hidden`.
    router_loss: coefficient of its load-balancing loss; 0: not trained on.
  """

  config: Any
  init: Callable[[Array], Params]
  hidden: Callable[[Params, Rows], Array]
  head: Callable[[Params], Array]
  logical_axes: Callable[[], Any]
  softcap: float | None = None
  routed: Callable[..., tuple[Array, Routing]] | None = None
  router_loss: float = 0.0


def states(
  model: Model, params: Params, rows: Rows, mesh: Mesh | None = None
) -> tuple[Array, Routing | None]:
  """Computes hidden_RLD and, of a mixture of experts, its routing.

  Args:
    model: the model.
    params: of its decoder.
    rows: packed rows; a mesh splits them evenly.
    mesh: devices that rows, heads and experts are split over, by the rules; None:
      wherever their arrays are, in a way that the compiler chooses.
  """
  if model.routed is not None:
    return model.routed(params, rows, mesh)
  with meshes.entered(mesh):
    return model.hidden(params, rows), None


@functools.lru_cache
def model(config: Config) -> Model:
  """Builds the decoder of a config; equal configs share one object and compilation."""
  return Model(
    config=config,
    init=functools.partial(_init, config),
    hidden=functools.partial(_hidden, config),
    head=functools.partial(head, config),
    logical_axes=lambda: jax.tree.map(lambda w: w.axes, weights(config)),
    softcap=config.logit_softcap,
    routed=None if config.experts is None else functools.partial(_routed, config),
    router_loss=config.router_loss_coef if config.router_loss else 0.0,
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
    "expert_mlp": c.mlp_width,
    "experts": c.experts.count if c.experts else 0,
    "router": c.experts.count if c.experts else 0,
    "vocab": c.vocab,
    "position": c.positions,
  }

  def weight(*axes: str, std: float = 0.0, constant: float = 0.0) -> Weight:
    return Weight(tuple(sizes[a] for a in axes), axes, std, constant)

  def norm_weights(*axes: str) -> dict[str, Weight]:
    initial = 0.0 if c.norm is Norm.RMS_OFFSET else 1.0
    scale = {"scale": weight(*axes, constant=initial)}
    return scale | ({"bias": weight(*axes)} if c.norm is Norm.LAYER else {})

  def linear(
    inputs: tuple, outputs: tuple, bias: bool, scale: float = 1.0, of: tuple = ()
  ):
    # Preserves variance from layer to layer; the two projections into the residual
    # stream are scaled down by depth, as in GPT-2.
    std = scale / np.sqrt(np.prod([sizes[a] for a in inputs]))
    kernel = {"kernel": weight("layers", *of, *inputs, *outputs, std=float(std))}
    return kernel | ({"bias": weight("layers", *of, *outputs)} if bias else {})

  residual_scale = (2 * c.layers) ** -0.5
  query = ("heads", "head_dim")
  key = ("kv_heads", "head_dim")
  mlp, of = (("expert_mlp",), ("experts",)) if c.experts else (("mlp",), ())
  blocks = {
    "query": linear(("embed",), query, c.qkv_bias),
    "key": linear(("embed",), key, c.qkv_bias),
    "value": linear(("embed",), key, c.qkv_bias),
    "output": linear(query, ("embed",), c.output_bias, residual_scale),
    "up": linear(("embed",), mlp, c.mlp_bias, of=of),
    "down": linear(mlp, ("embed",), c.mlp_bias, residual_scale, of),
  }
  if c.gated:
    blocks["gate"] = linear(("embed",), mlp, c.mlp_bias, of=of)
  if c.experts:
    blocks["router"] = linear(("embed",), ("router",), c.mlp_bias)
  if c.attention_sink:
    blocks["sink"] = {"bias": weight("layers", "heads")}
  for name, present in (("_norm", c.pre_norm), ("_post_norm", c.post_norm)):
    if present:
      blocks["attention" + name] = norm_weights("layers", "embed")
      blocks["mlp" + name] = norm_weights("layers", "embed")
  if c.qk_norm is not None:
    head = c.qk_norm is QKNorm.HEAD
    blocks["query_norm"] = norm_weights("layers", *(("head_dim",) if head else query))
    blocks["key_norm"] = norm_weights("layers", *(("head_dim",) if head else key))
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
  """Initialises float32 parameters from a tree of `Weight`.

  The numbers are the same with and without jit, however outputs are sharded. Of a
  large model each leaf is drawn by itself: jitted with sharded outputs, a device draws
  its own shards alone.
  """
  leaves, treedef = jax.tree.flatten(tree)
  sizes = [math.prod(leaf.shape) if leaf.std else 0 for leaf in leaves]
  starts = np.cumsum([0, *sizes]).tolist()
  if starts[-1] <= _DRAWN_AT_ONCE:
    # One random array, cut into pieces: XLA compiles each random array for half a
    # second.
    noise = jax.random.normal(key, (starts[-1],), jnp.float32)
    pieces = jnp.split(noise, starts[1:-1])
  else:
    pieces = map(
      functools.partial(draws.normal, key), starts, (x.shape for x in leaves)
    )
  params = [
    _noise(leaf, piece)
    if leaf.std
    else jnp.full(leaf.shape, leaf.constant, jnp.float32)
    for leaf, piece in zip(leaves, pieces, strict=True)
  ]
  return jax.tree.unflatten(treedef, params)


def _noise(weight: Weight, normal: Array) -> Array:
  # No draw reaches the bound. It keeps the compiler from multiplying two factors
  # first, which rounds to other numbers than without jit.
  return weight.std * jax.lax.clamp(-9.0, normal.reshape(weight.shape), 9.0)


def head(config: Config, params: Params) -> Array:
  """Returns the head `[V, D]` in the compute dtype."""
  head_VD = params["embedding"] if config.tied else params["head"]
  return _scaled(head_VD.astype(config.compute_dtype), 1 / config.logit_divisor)


# --- The block, on any leading axes


def norm(config: Config, params: Params, x: Array) -> Array:
  """Normalises over the axes of its scale, the last ones, in at least float32."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  axes = tuple(range(-params["scale"].ndim, 0))
  if config.norm is Norm.LAYER:
    x = x - x.mean(axes, keepdims=True)
  x = x * jax.lax.rsqrt((x * x).mean(axes, keepdims=True) + config.norm_eps)
  offset = 1 if config.norm is Norm.RMS_OFFSET else 0
  x = x * _expand(x, offset + params["scale"])
  if config.norm is Norm.LAYER:
    x = x + _expand(x, params["bias"])
  return x.astype(config.compute_dtype)


def _expand(x: Array, y: Array) -> Array:
  """Adds leading axes to `y`, so that it broadcasts over `x`."""
  return y.reshape((1,) * (x.ndim - y.ndim) + y.shape)


def _scaled(x: Array, scale: float) -> Array:
  return x if scale == 1 else x * jnp.asarray(scale, x.dtype)


def input_axes(part: str) -> int:
  """Number of input axes of a kernel: two for the attention output, else one."""
  return 2 if part == "output" else 1


def _linear(
  params: Params, axes: tuple[str, ...], contract: int, x: Array, mesh: Mesh | None
) -> Array:
  """Applies a linear layer, whose kernel has these axes; mesh: see `block`."""
  y = products.product(mesh, axes, x, params["kernel"], contract)
  lora = params.get("lora", {})  # of `lora.attach`
  if lora:
    a, b = (lora[name].astype(x.dtype) for name in ("a", "b"))
    y = y + jnp.tensordot(jnp.tensordot(x, a, axes=contract), b, axes=1)
  if "m" in lora:  # in its own dtype: changes of bfloat16's 1 are too coarse
    y = (y * _expand(y, lora["m"])).astype(x.dtype)
  if "bias" in params:
    y = y + _expand(y, params["bias"].astype(y.dtype))
  return y


def _mlp(config: Config, linear: Callable, x: Array) -> Array:
  up = linear("up", x)
  if config.gated:
    return linear("down", _gate(config, linear("gate", x), up))
  return linear("down", _ACTIVATIONS[config.activation](up))


def _gate(config: Config, gate: Array, up: Array) -> Array:
  if config.swiglu is None:
    return _ACTIVATIONS[config.activation](gate) * up
  alpha, limit = config.swiglu.alpha, config.swiglu.limit
  gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
  return (up + 1) * gate * jax.nn.sigmoid(alpha * gate)


def _mixture(
  config: Config, params: Params, linear: Callable, x: Array, mesh: Mesh | None
) -> tuple[Array, Array]:
  """Output of the mixture of experts, and the router's logits `[..., E]`.

  The router's logits are computed in at least float32.
  """
  logits = linear("router", x.astype(jnp.promote_types(x.dtype, jnp.float32)))
  own = {part: params[part] for part in ("gate", "up", "down")}
  if mesh is None:
    return _experts(config, own, x, logits, first=0).astype(x.dtype), logits
  # A sort of all tokens would bring every token to every device. Instead each device
  # sorts those of its rows, and applies the experts that it holds.
  axis = rules.RULES["experts"]

  def on_device(own: Params, x: Array, logits: Array) -> Array:
    # The gradients of the devices' experts are added up. JAX 0.10 leaves the sum out
    # where it has to infer that `x` varies by device, without an error.
    x, logits = jax.lax.pcast((x, logits), axis, to="varying")
    count = own["down"]["kernel"].shape[0]
    y = _experts(config, own, x, logits, first=jax.lax.axis_index(axis) * count)
    return jax.lax.psum(y, axis)

  by_row, by_expert = PartitionSpec(meshes.ROWS), PartitionSpec(axis)
  y = jax.shard_map(
    on_device, mesh=mesh, in_specs=(by_expert, by_row, by_row), out_specs=by_row
  )(own, x, logits)
  return y.astype(x.dtype), logits


def _experts(
  config: Config, params: Params, x: Array, logits: Array, first: int | Array
) -> Array:
  """Sum of the outputs of the experts in `params`, the first of which is `first`."""
  mixture = config.experts
  logits_TE, x_TD = logits.reshape(-1, mixture.count), x.reshape(-1, config.width)
  weight_TJ, index_TJ = experts.choose(logits_TE, mixture.active, mixture.normalised)
  groups = experts.group(index_TJ - first, params["down"]["kernel"].shape[0])
  x_SD = experts.take(x_TD, groups)
  gate, up = (_expert_linear(params[part], x_SD, groups) for part in ("gate", "up"))
  y_SD = _expert_linear(params["down"], _gate(config, gate, up), groups)
  return experts.put(y_SD, groups, weight_TJ).reshape(x.shape)


def _expert_linear(params: Params, x: Array, groups: Groups) -> Array:
  """`_linear` with the parameters of each slot's own expert."""

  def product(x: Array, kernel: Array) -> Array:
    return jax.lax.ragged_dot(x, kernel.astype(x.dtype), groups.size_E)

  y = product(x, params["kernel"])
  if "bias" in params:
    bias = params["bias"].astype(y.dtype)
    y = y + bias.at[groups.expert_S].get(mode="fill", fill_value=0)
  if "lora" in params:
    y = y + product(product(x, params["lora"]["a"]), params["lora"]["b"])
  return y


def block(
  config: Config,
  params: Params,
  x: Array,
  rotation: tuple,
  attend: Callable,
  mesh: Mesh | None = None,
) -> tuple[Array, Any, Array | None]:
  """Applies one layer.

  Args:
    config: of the decoder.
    params: of the layer.
    x: the layer's input `[..., D]`.
    rotation: of `angles`.
    attend: `(query, key, value) -> (mixed, aux)`.
    mesh: see `states`; the first axis of `x` is then rows.

  Returns:
    The layer's output, `aux`, and the router's logits `[..., E]`, or None.
  """

  def normed(name: str, x: Array) -> Array:
    return norm(config, params[name], x) if name in params else x

  layers = weights(config)["blocks"]

  def linear(name: str, x: Array) -> Array:
    axes = layers[name]["kernel"].axes[1:]
    return _linear(params[name], axes, input_axes(name), x, mesh)

  h = normed("attention_norm", x)
  query = _rotate(normed("query_norm", linear("query", h)), rotation)
  key = _rotate(normed("key_norm", linear("key", h)), rotation)
  mixed, aux = attend(query, key, linear("value", h))
  attended = normed("attention_post_norm", linear("output", mixed))
  attended = x + _scaled(attended, config.residual_scale)
  h = normed("mlp_norm", x if config.parallel_residual else attended)
  if config.experts is None:
    change, logits = _mlp(config, linear, h), None
  else:
    change, logits = _mixture(config, params, linear, h, mesh)
  change = normed("mlp_post_norm", change)
  return attended + _scaled(change, config.residual_scale), aux, logits


# --- Positions


def _frequencies(rotary: Rotary, dim: int) -> np.ndarray:
  freq = rotary.theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim) / rotary.linear
  if rotary.llama3 is not None:
    # Llama 3.1: low frequencies are divided by the factor, high ones unchanged, with
    # linear interpolation in (context / wavelength) between them.
    s = rotary.llama3
    periods = s.original_positions * freq / (2 * np.pi)
    weight = (periods - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    weight = np.clip(weight, 0.0, 1.0)
    freq = freq * (weight + (1 - weight) / s.factor)
  if rotary.yarn is not None:
    weight = _yarn_weight(rotary, dim)
    freq = freq * (weight + (1 - weight) / rotary.yarn.factor)
  return freq.astype(np.float32)


def _yarn_weight(rotary: Rotary, dim: int) -> np.ndarray:
  """Weight of the unscaled frequencies: a ramp from 1 to 0 over the dimensions."""
  s = rotary.yarn

  def dimension(turns: float) -> float:
    wavelength = s.original_positions / (turns * 2 * math.pi)
    return dim * math.log(wavelength) / (2 * math.log(rotary.theta))

  low, high = dimension(s.beta_fast), dimension(s.beta_slow)
  if s.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  high += 0.001 if low == high else 0  # as in the authors' code
  return 1 - np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)


class LayerKinds(NamedTuple):
  """What differs between layers beside their parameters; None: nothing.

  Attributes:
    window_N: number of last positions that a position attends to.
    window_index_N: of it in `Config.distinct_windows`.
    rotary_N: index of the layer's rotary embedding in the result of `angles`.
  """

  window_N: Array | None
  window_index_N: Array | None
  rotary_N: Array | None


def layer_kinds(config: Config) -> LayerKinds:
  """Lists the windows and rotary embeddings of the layers."""
  unbounded = np.iinfo(np.int32).max
  windows = [window or unbounded for window in config.windows]
  chosen = [config.distinct_windows.index(window or None) for window in config.windows]
  distinct = _distinct_rotaries(config)
  indices = [distinct.index(rotary) for rotary in config.rotaries]
  return LayerKinds(
    window_N=np.asarray(windows, np.int32) if windows else None,
    window_index_N=np.asarray(chosen, np.int32) if windows else None,
    rotary_N=np.asarray(indices, np.int32) if len(distinct) > 1 else None,
  )


def _distinct_rotaries(config: Config) -> tuple[Rotary | None, ...]:
  return tuple(dict.fromkeys(config.rotaries))


def angles(config: Config, position: Array) -> tuple:
  """Computes cosines and sines of the rotary embeddings.

  `[..., 1, rotated / 2]`; with a leading axis of the distinct rotary embeddings where
  layers differ; () where nothing is rotated.
  """
  distinct = _distinct_rotaries(config)
  tables = [_angles(config, rotary, position) for rotary in distinct]
  if len(tables) == 1:
    return tables[0]
  return tuple(jnp.stack(one) for one in zip(*tables, strict=True))


def layer_angles(angles: tuple, index: Array | None) -> tuple:
  """Selects a layer's rotary embedding, `index` of `LayerKinds.rotary_N`."""
  return angles if index is None else tuple(table[index] for table in angles)


def _angles(config: Config, rotary: Rotary | None, position: Array) -> tuple:
  if rotary is None and config.rotary is None:
    return ()
  position = position[..., None, None].astype(jnp.float32)
  if rotary is None:  # a layer that does not rotate: by an angle of 0
    freq, scale = np.zeros(config.rotary_dim // 2, np.float32), 1.0
  else:
    freq = _frequencies(rotary, config.rotary_dim)
    scale = 1.0 if rotary.yarn is None else rotary.yarn.attention_factor
  angle = position * _expand(position, jnp.asarray(freq))
  return _scaled(jnp.cos(angle), scale), _scaled(jnp.sin(angle), scale)


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


def embed(
  config: Config,
  params: Params,
  tokens: Array,
  position: Array,
  mesh: Mesh | None = None,
) -> Array:
  """Embeds tokens and, where learned, positions, in the compute dtype; mesh: see
  `states`."""
  x = lookup.take(mesh, params["embedding"], tokens, ("vocab", "embed"))
  if config.rotary is None:
    x = x + lookup.take(mesh, params["position"], position, ("position", "embed"))
  return _scaled(x.astype(config.compute_dtype), config.embedding_scale)


# --- Whole rows


def attention_scale(config: Config) -> float:
  """Factor of the attention's logits."""
  return config.attention_scale or config.head_dim**-0.5


def sink(params: Params) -> Array | None:
  """The sinks of a layer's heads `[H]`, or None."""
  return params["sink"]["bias"] if "sink" in params else None


def attention_block(length: int, platform: str) -> int | None:
  """Length of the blocks of attention in rows of a length; None: computed whole."""
  block, shortest = _BLOCK.get(platform, (None, 0))
  return None if length < shortest else block


def row_attention(config: Config, rows: Rows, mesh: Mesh | None) -> Callable:
  """Makes the attention of all layers over whole rows.

  By blocks where rows are long enough for it, on backends where it is faster; in
  kernels on TPUs whose memory holds what they need (`kernels.fits`).

  Args:
    config: of the decoder.
    rows: packed rows.
    mesh: see `states`: each device attends within its rows and its heads.

  Returns:
    `(query [R, L, H, h], key and value [R, L, g, h], sinks [H] or None, the layer's
    kinds) -> [R, L, H, h]`.
  """
  given = {"scale": attention_scale(config), "softcap": config.attention_softcap}
  ids = attention.ids(rows.segment_RL, rows.branch_RL, rows.position_RL)
  length = rows.segment_RL.shape[1]
  block = attention_block(length, meshes.platform(mesh))
  if block is None:
    mask = attention.allowed(ids, ids)

    def dense(query, key, value, sink_H, kinds):
      position = rows.position_RL
      near = attention.within(position[:, :, None], position[:, None], kinds.window_N)
      return attention.dense(query, key, value, mask & near, sink_H=sink_H, **given)

    return dense

  short = -length % block
  ids = attention.padded(ids, short)
  by_row = PartitionSpec(meshes.ROWS)
  lists = _on_rows(
    lambda ids: tuple(
      attention.block_pairs(ids, block, window) for window in config.distinct_windows
    ),
    mesh,
    (by_row,),
    by_row,
  )(ids)

  def blocked(query, key, value, sink_H, kinds):
    pairs = lists[0]
    if len(lists) > 1:
      stacked = jax.tree.map(lambda *x: jnp.stack(x), *lists)
      pairs = jax.tree.map(lambda x: x[kinds.window_index_N], stacked)

    def attend(query, key, value, sink_H, ids, pairs, window):
      more = {"block": block, "sink_H": sink_H, "window": window}
      by_kernels = _has_kernels(mesh, query, key, block)
      way = kernels.blocked if by_kernels else attention.blocked
      return way(query, key, value, ids, pairs, **more, **given)

    heads = PartitionSpec(meshes.ROWS, None, rules.kv_head_axis(mesh, config.kv_heads))
    specs = (heads, heads, heads, PartitionSpec(heads[2]), by_row, by_row, None)
    wide = (
      jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0))) for x in (query, key, value)
    )
    attend = _on_rows(attend, mesh, specs, heads)
    return attend(*wide, sink_H, ids, pairs, kinds.window_N)[:, :length]

  return blocked


def _has_kernels(mesh: Mesh | None, query: Array, key: Array, block: int) -> bool:
  """Whether kernels attend within a device's rows; arguments are its parts."""
  fits = kernels.fits(query.shape, key.shape[2], block, query.dtype)
  return fits and meshes.has_chips(mesh, kernels.CHIPS)


def _on_rows(function: Callable, mesh: Mesh | None, specs: Any, out: Any) -> Callable:
  """Applies a function to each device's part of its arguments; no mesh: to all."""
  if mesh is None:
    return function
  return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out)


def _hidden(config: Config, params: Params, rows: Rows) -> Array:
  mesh = meshes.current()
  x, _ = run_blocks(config, params, rows, lambda key, value, logits: None, mesh)
  return norm(config, params["final_norm"], x)


def _routed(
  config: Config, params: Params, rows: Rows, mesh: Mesh | None
) -> tuple[Array, Routing]:
  def keep(key: Array, value: Array, logits_RLE: Array) -> Routing:
    return experts.routing(logits_RLE, rows.segment_RL, config.experts.active)

  x, layers = run_blocks(config, params, rows, keep, mesh)
  routing = jax.tree.map(lambda x_N: x_N.sum(0), layers)
  return norm(config, params["final_norm"], x), routing


def run_blocks(
  config: Config,
  params: Params,
  rows: Rows,
  keep: Callable[..., Any],
  mesh: Mesh | None = None,
) -> tuple[Array, Any]:
  """Applies all layers to whole rows.

  Args:
    config: of the decoder.
    params: of the decoder.
    rows: packed rows.
    keep: `(key, value, router's logits or None) ->` what is returned of each layer,
      stacked.
    mesh: see `states`.

  Returns:
    `[R, L, D]` before the final norm, and what `keep` returned.
  """
  attend_rows = row_attention(config, rows, mesh)
  tables = angles(config, rows.position_RL)

  def step(x, layer):
    params, kinds = layer

    def attend(query, key, value):
      return attend_rows(query, key, value, sink(params), kinds), (key, value)

    rotation = layer_angles(tables, kinds.rotary_N)
    x, (key, value), logits = block(config, params, x, rotation, attend, mesh)
    return x, keep(key, value, logits)

  if config.remat != "none":
    step = jax.checkpoint(step, prevent_cse=False, policy=_POLICIES[config.remat])
  x = embed(config, params, rows.tokens_RL, rows.position_RL, mesh)
  return jax.lax.scan(step, x, (params["blocks"], layer_kinds(config)))
