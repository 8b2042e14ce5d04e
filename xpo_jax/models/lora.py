"""Low-rank adapters on the decoder's linear layers: W + (alpha / rank) A B, W frozen.

    adapter = Adapter(rank=8, targets="query|value")
    params = init(config, adapter, key)          # B = 0: the base, bit for bit
    hidden = model.hidden(attach(base, params, adapter), rows)

Only `params` is trained. The base is what the adapter hangs on and what the reference
is, one copy for both: `attach` adds leaves beside its kernels and copies none of them.
`attach` is for training and decoding, `merged` for a model without adapters.

Paper: Hu et al. 2021, arXiv:2106.09685, Eq. not checked. A is drawn as there from a
Gaussian, of the variance of its code's uniform draw, 1 / (3 inputs).
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from xpo_jax.models import hf_config, merge, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.transformer import Model, Weight
from xpo_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Which linear layers are adapted, and how.

  Attributes:
    rank: inner dimension of A B.
    alpha: A B is scaled by alpha / rank.
    targets: regular expression that the end of a layer's name must match whole, from a
      `/` or `.` on: of our parameters ("query|value", "blocks/up") or of Hugging Face's
      modules ("q_proj|v_proj", "mlp[.].*"). ".*" is every linear layer of every block.
      A module that holds query, key and value in one stands for the three.
    l1: weight of the L1 norm of all changes (alpha / rank) A B, added to the loss: 0,
      or PAFT's sparsity (Pentyala et al. 2024, arXiv:2406.17923).
  """

  rank: int = 8
  alpha: float = 16.0
  targets: str = ".*"
  l1: float = 0.0

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
        f"Adapter.targets is {self.targets!r}, no regular expression: {error}"
      ) from None

  @property
  def scale(self) -> float:
    """What A B is multiplied by."""
    return self.alpha / self.rank


@functools.lru_cache
def modules(config: Config) -> dict[str, list[str]]:
  """The linear layers of a block: our name -> Hugging Face's, one for each layer.

  Raises:
    ValueError: no Hugging Face family holds the config.
  """
  found: dict[str, list[str]] = {}
  for entry in hf_config.of(config).entries(config):
    for group, part, *leaf in (path for path in entry.paths if len(path) == 3):
      if (group, leaf) == ("blocks", ["kernel"]):
        found.setdefault(part, []).append(entry.name.removesuffix(".weight"))
  return found


def targets(config: Config, adapter: Adapter) -> tuple[str, ...]:
  """Our names of the layers that are adapted.

  Raises:
    ValueError: none is, or not in all layers of the stack.
  """
  pattern = re.compile(rf"(?:.*[./])?(?:{adapter.targets})")
  known, chosen = modules(config), []
  for part, names in known.items():
    ours = (f"blocks/{part}", f"blocks/{part}/kernel")
    if any(map(pattern.fullmatch, ours)):
      chosen.append(part)
      continue
    hits = [name for name in names if pattern.fullmatch(name)]
    if hits and len(hits) < len(names):
      raise ValueError(
        f"Adapter.targets {adapter.targets!r} matches {hits[0]} but not every layer's; "
        "layers are stacked, so adapt all of them or none: leave their numbers out"
      )
    if hits:
      chosen.append(part)
  if not chosen:
    last = {names[0].split(".0.")[-1]: None for names in known.values()}
    raise ValueError(
      f"Adapter.targets {adapter.targets!r} matches no linear layer; there are "
      f"{', '.join(known)}, in Hugging Face's names {', '.join(last)}"
    )
  return tuple(chosen)


def inputs(part: str) -> int:
  """How many axes of a layer's kernel it contracts: the heads' output two."""
  return 2 if part == "output" else 1


def weights(config: Config, adapter: Adapter) -> dict[str, Any]:
  """The trained parameters, as a tree of `transformer.Weight`.

  `a` is [layers, inputs.., rank], `b` [layers, rank, outputs..], their axes those of
  the kernel, so that they are sharded with it; the rank is whole everywhere.
  """
  kernels = transformer.weights(config)["blocks"]
  tree = {}
  for part in targets(config, adapter):
    kernel, cut = kernels[part]["kernel"], 1 + inputs(part)
    std = (3 * math.prod(kernel.shape[1:cut])) ** -0.5
    tree[part] = {
      "a": Weight(
        (*kernel.shape[:cut], adapter.rank), (*kernel.axes[:cut], "rank"), std
      ),
      "b": Weight(
        (kernel.shape[0], adapter.rank, *kernel.shape[cut:]),
        ("layers", "rank", *kernel.axes[cut:]),
      ),
    }
  return {"blocks": tree}


def init(config: Config, adapter: Adapter, key: Array) -> Params:
  """Fresh adapters, float32: A random, B zero, so that they change nothing yet.

  Raises:
    ValueError: see `targets`.
  """
  return transformer.draw(weights(config, adapter), key)


def attach(base: Params, params: Params, adapter: Adapter) -> Params:
  """The decoder's parameters with adapters beside the kernels.

  Whatever runs the decoder runs these: training, scoring, sampling.
  """
  blocks = dict(base["blocks"])
  for part, pair in params["blocks"].items():
    scaled = {"a": pair["a"], "b": adapter.scale * pair["b"]}
    blocks[part] = blocks[part] | {"lora": scaled}
  return base | {"blocks": blocks}


def delta(params: Params, adapter: Adapter) -> Params:
  """What the adapters add to each kernel they hang on, `{"blocks": {part: ..}}`.

  A tree for `models.merge`: merge these, not the factors, for a mean of factors is no
  mean of their products.
  """

  def product(a: Array, b: Array) -> Array:
    return jnp.tensordot(a, b, axes=1)

  return {
    "blocks": {
      part: {"kernel": adapter.scale * jax.vmap(product)(pair["a"], pair["b"])}
      for part, pair in params["blocks"].items()
    }
  }


def add(base: Params, change: Params) -> Params:
  """The base with a change (`delta`, or a merge of some) added to its kernels.

  Raises:
    ValueError: shapes that differ, by path.
  """
  blocks = base["blocks"]
  kernels = {part: {"kernel": blocks[part]["kernel"]} for part in change["blocks"]}
  kernels = merge.apply({"blocks": kernels}, change)["blocks"]
  return base | {"blocks": blocks | {p: blocks[p] | k for p, k in kernels.items()}}


def merged(base: Params, params: Params, adapter: Adapter) -> Params:
  """The decoder's parameters with the adapters folded in, in the base's types."""
  return add(base, delta(params, adapter))


def l1(params: Params, adapter: Adapter) -> Array:
  """Sum of |alpha / rank A B| over all adapted kernels.

  Of the change itself, not of the factors, whose own L1 norm is another thing.
  """
  return sum(jnp.abs(x).sum() for x in jax.tree.leaves(delta(params, adapter)))


def trained(model: Model, adapter: Adapter | None) -> Model:
  """The model whose parameters are those trained: the adapters', where there are any.

  Its `init` and `logical_axes` are the adapters'; its functions take what `attach`
  gives.
  """
  if adapter is None:
    return model
  tree = functools.partial(weights, model.config, adapter)
  return model._replace(
    init=functools.partial(init, model.config, adapter),
    logical_axes=lambda: _axes(tree()),
  )


def attached(model: Model, adapter: Adapter | None) -> Model:
  """The model with the logical axes of what `attach` gives."""
  if adapter is None:
    return model

  def logical_axes() -> Params:
    axes = model.logical_axes()
    blocks = dict(axes["blocks"])
    for part, pair in _axes(weights(model.config, adapter))["blocks"].items():
      blocks[part] = blocks[part] | {"lora": pair}
    return axes | {"blocks": blocks}

  return model._replace(logical_axes=logical_axes)


def _axes(tree: dict[str, Any]) -> Params:
  return jax.tree.map(lambda weight: weight.axes, tree)
