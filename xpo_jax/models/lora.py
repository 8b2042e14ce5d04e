"""Low-rank adapters on the decoder's linear layers: W + s A B, W frozen.

    adapter = Adapter(rank=8, targets="query|value")
    params = init(config, adapter, key)          # B = 0: equals the base, bit for bit
    hidden = model.hidden(attach(base, params, adapter), rows)

The scale s is alpha / rank, or alpha / sqrt(rank) in rsLoRA. DoRA also trains the norms
of each output's weights: a kernel is then (|W| + m) (W + s A B) / |W + s A B|, where m
is 0 at the start; biases stay as they are. The gradient takes the divisor for a
constant, as section 4.3 of the paper proposes. Only `params` is trained.

The base and the reference share one copy of the base's parameters: `attach` adds leaves
next to its kernels and copies none of them. `attach` is for training and decoding,
`merged` gives a model without adapters.

Papers: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732;
DoRA: Liu et al. 2024, arXiv:2402.09353. A is initialised from a Gaussian as in the
first, with the variance of the uniform distribution in its code, 1 / (3 inputs).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.models import hf_config, merge, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.transformer import Model, Weight
from xpo_jax.sharding import nf4
from xpo_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Configuration of LoRA: rank, scale and adapted layers.

  Attributes:
    rank: inner dimension of A B.
    alpha: A B is scaled by alpha / rank, with `rslora` by alpha / sqrt(rank).
    targets: regular expression that must match a layer's name, or a suffix of it after
      `/` or `.`: of a parameter ("query|value", "blocks/up") or of a Hugging Face
      module ("q_proj|v_proj", "mlp[.].*"). ".*" is every linear layer of every block. A
      fused module stands for its query, key and value. Experts have a pair A, B each,
      and their router is a layer too, as in PEFT's "all-linear"; "gate" is the experts'
      projection and, of Hugging Face's names, the router. Not adapted are router and
      experts of gpt-oss, whose experts are one tensor.
    l1: weight of the L1 norm of the kernels' changes (`delta`) in the loss: 0, or
      PAFT's sparsity penalty (Pentyala et al. 2024, arXiv:2406.17923).
    rslora: rank-stabilised scale.
    dora: train the magnitude of each output's weights too. Not of experts and their
      router: PEFT reads no such adapter.
    continued: go on training the adapter that the start is, on its base; rank, alpha,
      targets, `rslora` and `dora` must be its own. Otherwise a new adapter is trained
      on the start, into which its own is merged.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: str = ".*"
  l1: float = 0.0
  rslora: bool = False
  dora: bool = False
  continued: bool = False

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f"Adapter.rank is {self.rank}; it must be at least 1")
    if not self.alpha > 0:
      raise ValueError(f"Adapter.alpha is {self.alpha}; it must be > 0")
    if not self.l1 >= 0:
      raise ValueError(f"Adapter.l1 is {self.l1}; it must be >= 0")
    try:
      re.compile(self.targets)
    except re.error as error:
      raise ValueError(
        f"Adapter.targets is {self.targets!r}, not a regular expression: {error}"
      ) from None

  @property
  def scale(self) -> float:
    """Factor s of A B."""
    return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

  def alpha_of(self, scale: float) -> float:
    """The alpha that gives A B this factor."""
    return scale * (math.sqrt(self.rank) if self.rslora else self.rank)


@functools.lru_cache
def modules(config: Config) -> dict[str, list[str]]:
  """Maps the linear layers of a block to their Hugging Face modules: one per layer, of
  experts one per layer and expert.

  Raises:
    ValueError: no Hugging Face family supports the config.
  """
  names: dict[str, list[str]] = {}
  for entry in hf_config.find_family(config).entries(config):
    if not entry.adaptable:
      continue
    for group, part, *leaf in (path for path in entry.paths if len(path) == 3):
      if (group, leaf) == ("blocks", ["kernel"]):
        names.setdefault(part, []).append(entry.name.removesuffix(".weight"))
  return names


def targets(config: Config, adapter: Adapter) -> tuple[str, ...]:
  """Returns the names of the adapted parameters of a block.

  Raises:
    ValueError: the pattern, or a name of a list "query|value", matches no layer, or
      only some layers of the stack; experts with `dora`.
  """
  parts = modules(config)
  for one in (adapter.targets, *_alternatives(adapter.targets)):
    if not _matched(parts, one):
      suffixes = {names[0].split(".0.")[-1]: None for names in parts.values()}
      raise ValueError(
        f"Adapter.targets {one!r} matches no linear layer that PEFT adapts; allowed: "
        f"{', '.join(parts)}, or Hugging Face's names {', '.join(suffixes)}"
      )
  adapted = _matched(parts, adapter.targets)
  if adapter.dora:
    _check_no_experts(config, adapter, adapted)
  return adapted


def _check_no_experts(config: Config, adapter: Adapter, adapted: Sequence[str]) -> None:
  blocks = transformer.weights(config)["blocks"]
  of_experts = {"experts", "router"}
  of = [part for part in adapted if of_experts & set(blocks[part]["kernel"].axes)]
  if of:
    others = "|".join(part for part in modules(config) if part not in of)
    raise ValueError(
      f"Adapter.dora is True and Adapter.targets {adapter.targets!r} matches experts "
      f"or their router ({', '.join(of)}), for which PEFT has no DoRA; leave it out, "
      f"or set Adapter.targets to {others!r}"
    )


def _matched(parts: dict[str, list[str]], targets: str) -> tuple[str, ...]:
  """The parameters of a block that a pattern matches."""
  pattern = re.compile(rf"(?:.*[./])?(?:{targets})")
  adapted = []
  for part, names in parts.items():
    paths = (f"blocks/{part}", f"blocks/{part}/kernel")
    if any(map(pattern.fullmatch, paths)):
      adapted.append(part)
      continue
    matches = [name for name in names if pattern.fullmatch(name)]
    if matches and len(matches) < len(names):
      raise ValueError(
        f"Adapter.targets {targets!r} matches {matches[0]} but not every layer's (or "
        "expert's); they are stacked, so adapt all or none: leave out their numbers"
      )
    if matches:
      adapted.append(part)
  return tuple(adapted)


def _alternatives(targets: str) -> list[str]:
  """The alternatives of a pattern that is a list of names, "query|value"."""
  return targets.split("|") if re.fullmatch(r"[\w./|\\-]+", targets) else []


def weights(config: Config, adapter: Adapter) -> dict[str, Any]:
  """Returns the adapters' parameters as a tree of `transformer.Weight`.

  `a` is [layers, inputs.., rank], `b` [layers, rank, outputs..], of experts with their
  axis after the layers', with the kernel's axis names, so that they are sharded like
  it; the rank axis is replicated. In DoRA `m` is [layers, outputs..], the magnitudes
  less the norms of the base: the start is 0 whatever the base is. Weight decay leaves
  it out; Adafactor's steps are relative to this difference, as to `b`, which starts at
  0 too.
  """
  kernels = transformer.weights(config)["blocks"]
  tree = {}
  for part in targets(config, adapter):
    kernel = kernels[part]["kernel"]
    stacked = 1 + ("experts" in kernel.axes)
    cut = stacked + transformer.input_axes(part)
    std = (3 * math.prod(kernel.shape[stacked:cut])) ** -0.5
    tree[part] = {
      "a": Weight(
        (*kernel.shape[:cut], adapter.rank), (*kernel.axes[:cut], "rank"), std
      ),
      "b": Weight(
        (*kernel.shape[:stacked], adapter.rank, *kernel.shape[cut:]),
        (*kernel.axes[:stacked], "rank", *kernel.axes[cut:]),
      ),
    }
    if adapter.dora:
      tree[part]["m"] = Weight(
        (*kernel.shape[:stacked], *kernel.shape[cut:]),
        (*kernel.axes[:stacked], *kernel.axes[cut:]),
      )
  return {"blocks": tree}


def init(config: Config, adapter: Adapter, key: Array) -> Params:
  """Initialises adapters in float32: A random, B and m zero, which is the base.

  Raises:
    ValueError: see `targets`.
  """
  return transformer.init_params(weights(config, adapter), key)


def norms(base: Params, part: str) -> np.ndarray:
  """Computes the norm of each output's weights, [layers, outputs..], on the host.

  Raises:
    ValueError: weights that are all 0: they have no direction, which DoRA divides by.
  """
  kernel = jax.device_get(base["blocks"][part]["kernel"])
  inputs = tuple(range(transformer.input_axes(part)))
  square = [
    np.square(np.asarray(of_layer), dtype=np.float64).sum(inputs)
    for of_layer in _by_layer(kernel)
  ]
  layers = [n for n, of_layer in enumerate(square) if not of_layer.all()]
  if layers:
    raise ValueError(
      f"Adapter.dora is True, and blocks/{part} has an output whose weights are all 0 "
      f"in layer {', '.join(map(str, layers))}: they have no direction; leave {part} "
      "out of Adapter.targets, or set Adapter.dora to False"
    )
  return np.sqrt(square)


def check_base(config: Config, adapter: Adapter | None, base: Params) -> None:
  """Refuses a base that DoRA is not defined on.

  Raises:
    ValueError: see `norms` and `targets`.
  """
  if adapter is not None and adapter.dora:
    for part in targets(config, adapter):
      norms(base, part)


def quantised(config: Config, base: Params) -> Params:
  """The base with the kernels of its linear layers in 4 bits (`nf4.quantise`); the
  router of experts, embedding and head stay as they are.

  On the host it is computed layer by layer, so that no device holds more of the base.
  """
  kernels = transformer.weights(config)["blocks"]
  blocks = {}
  for part, own in base["blocks"].items():
    blocks[part] = own
    if "kernel" not in own or nf4.is_nf4(own["kernel"]) or part == "router":
      continue
    # The last of the inputs; layers and experts are before them.
    axis = transformer.input_axes(part) + ("experts" in kernels[part]["kernel"].axes)
    blocks[part] = own | {"kernel": _quantised(own["kernel"], axis)}
  return base | {"blocks": blocks}


_quantise = jax.jit(nf4.quantise, static_argnames="axis")


def _quantised(kernel: Array, axis: int) -> nf4.NF4:
  """A kernel stacked over layers, in 4 bits."""
  if not isinstance(kernel, np.ndarray):
    return _quantise(kernel, axis=axis)
  layers = [jax.device_get(_quantise(one, axis=axis - 1)) for one in kernel]
  return jax.tree.map(lambda *x: np.stack(x), *layers)


def _by_layer(kernel: Array | nf4.NF4) -> Iterator[Array]:
  """The layers of a stacked kernel as arrays."""
  for n in range(kernel.shape[0]):
    yield nf4.dense(jax.tree.map(lambda x, n=n: x[n], kernel))


def attach(base: Params, params: Params, adapter: Adapter) -> Params:
  """Adds adapters to the decoder's parameters, next to their kernels.

  The result works wherever the decoder's parameters do: training, scoring, sampling.
  In DoRA its `m` is the factor of each output, so that no norm is computed there.
  """
  blocks = dict(base["blocks"])
  for part, own in params["blocks"].items():
    scaled = own | {"b": adapter.scale * own["b"]}
    if adapter.dora:
      scaled["m"] = _output_scale(blocks[part]["kernel"], **scaled)
    blocks[part] = blocks[part] | {"lora": scaled}
  return base | {"blocks": blocks}


@jax.jit
def _output_scale(kernel: Array, a: Array, b: Array, m: Array) -> Array:
  """DoRA's factor of each output, (|W| + m) / |W + A B|, in at least float32.

  |W + A B|^2 is |W|^2 + 2 <W, A B> + |A B|^2, of which W A is computed and never A B.
  It costs as much as `rank` tokens, and where B = 0 and m = 0 the factor is 1, exactly.
  """
  layers, outputs = len(a), math.prod(m.shape[1:])
  dtype = jnp.promote_types(kernel.dtype, jnp.float32)
  product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

  w_NIO = jax.lax.stop_gradient(kernel).astype(dtype).reshape(layers, -1, outputs)
  a_NIR = jax.lax.stop_gradient(a).astype(dtype).reshape(layers, -1, a.shape[-1])
  b_NRO = jax.lax.stop_gradient(b).astype(dtype).reshape(layers, -1, outputs)
  square_NO = jnp.square(w_NIO).sum(1)
  twice_NRO = 2 * product("nio,nir->nro", w_NIO, a_NIR)
  twice_NRO += product("nir,nis,nso->nro", a_NIR, a_NIR, b_NRO)
  growth_NO = (twice_NRO * b_NRO).sum(1) / square_NO
  m_NO = m.reshape(layers, outputs)
  scale_NO = (1 + m_NO / jnp.sqrt(square_NO)) / jnp.sqrt(1 + growth_NO)
  return scale_NO.reshape(m.shape)


def delta(base: Params, params: Params, adapter: Adapter) -> Params:
  """Computes the change of each adapted kernel, `{"blocks": {part: ..}}`.

  Use these trees in `models.merge`, not the factors: a mean of factors is not the mean
  of their products.
  """

  def product(part: str, a: Array, b: Array) -> Array:
    multiply = functools.partial(jnp.tensordot, axes=1)
    for _ in range(a.ndim - 1 - transformer.input_axes(part)):  # layers, and experts
      multiply = jax.vmap(multiply)
    return multiply(a, b)

  changes = {}
  for part, own in params["blocks"].items():
    change = adapter.scale * product(part, own["a"], own["b"])
    if adapter.dora:
      kernel = base["blocks"][part]["kernel"]
      scale = _output_scale(kernel, own["a"], adapter.scale * own["b"], own["m"])
      scale = jnp.expand_dims(scale, tuple(range(1, 1 + transformer.input_axes(part))))
      change = (scale - 1) * kernel.astype(change.dtype) + scale * change
    changes[part] = {"kernel": change}
  return {"blocks": changes}


def add(base: Params, change: Params) -> Params:
  """Adds a change (`delta`, or a merge of several) to the base's kernels.

  In at least float32: bfloat16 would round away what is below 1 / 256 of a weight.

  Raises:
    ValueError: shapes that differ, by path.
  """
  blocks = base["blocks"]
  kernels = {}
  for part in change["blocks"]:
    kernel = blocks[part]["kernel"]
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    kernels[part] = {"kernel": kernel.astype(wide)}
  kernels = merge.apply({"blocks": kernels}, change)["blocks"]
  return base | {"blocks": blocks | {p: blocks[p] | k for p, k in kernels.items()}}


def merged(base: Params, params: Params, adapter: Adapter) -> Params:
  """Merges the adapters into the decoder's parameters, see `add`."""
  return add(base, delta(base, params, adapter))


def l1(base: Params, params: Params, adapter: Adapter) -> Array:
  """Computes the sum of the entries' sizes of all changes (`delta`).

  This is the norm of the change, not of the factors.
  """
  changes = delta(base, params, adapter)
  return sum(jnp.abs(x).sum() for x in jax.tree.leaves(changes))


def trainable_model(model: Model, adapter: Adapter | None) -> Model:
  """Returns a model of the trained parameters: the adapters', if there are any.

  Its `init` and `logical_axes` are the adapters'; its other functions take the result
  of `attach`.
  """
  if adapter is None:
    return model
  tree = functools.partial(weights, model.config, adapter)
  return model._replace(
    init=functools.partial(init, model.config, adapter),
    logical_axes=lambda: _axes(tree()),
  )


@functools.lru_cache
def attached_model(model: Model, adapter: Adapter | None) -> Model:
  """Returns the model with the logical axes of the result of `attach`.

  Equal arguments share one object and what was compiled for it.
  """
  if adapter is None:
    return model

  def logical_axes() -> Params:
    axes = model.logical_axes()
    blocks = dict(axes["blocks"])
    for part, own in _axes(weights(model.config, adapter))["blocks"].items():
      blocks[part] = blocks[part] | {"lora": own}
    return axes | {"blocks": blocks}

  return model._replace(logical_axes=logical_axes)


def _axes(tree: dict[str, Any]) -> Params:
  return jax.tree.map(lambda weight: weight.axes, tree)
