"""Where each Hugging Face tensor goes: names, transposes, fused projections."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.models import transformer
from xpo_jax.models.config import Config, Norm


class Entry(NamedTuple):
  """One tensor of a checkpoint.

  Attributes:
    name: in the safetensors file.
    shape: in the file.
    paths: the parameters it holds, as paths in our tree: three for a fused qkv.
    layer: its index in our stacked arrays, or None.
    split: the tensor to our arrays, one for each path.
    join: our arrays to the tensor.
  """

  name: str
  shape: tuple[int, ...]
  paths: tuple[tuple[str, ...], ...]
  layer: int | None
  split: Callable[[np.ndarray], tuple[np.ndarray, ...]]
  join: Callable[..., np.ndarray]


def llama(config: Config) -> Iterator[Entry]:
  """Weights of Llama."""
  names = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
  }
  yield from _ends(config, "model.embed_tokens", "model.norm", "lm_head")
  for layer in range(config.layers):
    yield from _layer(config, layer, f"model.layers.{layer}.", names)


def gpt_neox(config: Config) -> Iterator[Entry]:
  """Weights of GPT-NeoX (Pythia)."""
  names = {
    "output": "attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
  }
  D, H, h = config.width, config.heads, config.head_dim
  yield from _ends(
    config, "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"
  )
  for layer in range(config.layers):
    start = f"gpt_neox.layers.{layer}."
    yield from _layer(config, layer, start, names)
    # Interleaved: each head's query, key and value lie together.
    fused = start + "attention.query_key_value."
    yield Entry(
      fused + "weight",
      (3 * D, D),
      _qkv("kernel"),
      layer,
      lambda w: tuple(np.moveaxis(w.reshape(H, 3, h, D), (1, 3), (0, 1))),
      lambda *qkv: np.moveaxis(np.stack(qkv), (0, 1), (1, 3)).reshape(3 * D, D),
    )
    if config.qkv_bias:
      yield Entry(
        fused + "bias",
        (3 * D,),
        _qkv("bias"),
        layer,
        lambda b: tuple(np.moveaxis(b.reshape(H, 3, h), 1, 0)),
        lambda *qkv: np.stack(qkv, axis=1).reshape(3 * D),
      )


def gpt2(config: Config) -> Iterator[Entry]:
  """Weights of GPT-2."""
  names = {
    "output": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
  }
  D, H, h = config.width, config.heads, config.head_dim
  yield from _ends(config, "transformer.wte", "transformer.ln_f", "lm_head")
  yield _same(config, "transformer.wpe.weight", ("position",))
  for layer in range(config.layers):
    start = f"transformer.h.{layer}."
    # Conv1D: stored (in, out) as ours, not transposed.
    yield from _layer(config, layer, start, names, transposed=False)
    yield Entry(
      start + "attn.c_attn.weight",
      (D, 3 * D),
      _qkv("kernel"),
      layer,
      lambda w: tuple(np.moveaxis(w.reshape(D, 3, H, h), 1, 0)),
      lambda *qkv: np.stack(qkv, axis=1).reshape(D, 3 * D),
    )
    yield Entry(
      start + "attn.c_attn.bias",
      (3 * D,),
      _qkv("bias"),
      layer,
      lambda b: tuple(b.reshape(3, H, h)),
      lambda *qkv: np.stack(qkv).reshape(3 * D),
    )


def _qkv(leaf: str) -> tuple[tuple[str, ...], ...]:
  return tuple(("blocks", part, leaf) for part in ("query", "key", "value"))


def _same(
  config: Config, name: str, path: tuple[str, ...], layer: int | None = None
) -> Entry:
  """A tensor stored as ours, but for how its axes are flattened."""
  shape = _shape(config, path, layer)
  flat = shape if layer is None else (math.prod(shape),)
  return Entry(
    name, flat, (path,), layer, lambda x: (x.reshape(shape),), lambda x: x.reshape(flat)
  )


def _shape(config: Config, path: tuple[str, ...], layer: int | None) -> tuple:
  node: Any = transformer.weights(config)
  for key in path:
    node = node[key]
  return node.shape if layer is None else node.shape[1:]


def _ends(config: Config, embedding: str, norm: str, head: str) -> Iterator[Entry]:
  yield _same(config, f"{embedding}.weight", ("embedding",))
  yield _same(config, f"{norm}.weight", ("final_norm", "scale"))
  if config.norm is Norm.LAYER:
    yield _same(config, f"{norm}.bias", ("final_norm", "bias"))
  if not config.tied:
    yield _same(config, f"{head}.weight", ("head",))


def _layer(
  config: Config,
  layer: int,
  start: str,
  names: dict[str, str],
  transposed: bool = True,
) -> Iterator[Entry]:
  """The norms and linear maps of one layer; torch stores (out, in)."""
  for part, name in names.items():
    for leaf in transformer.weights(config)["blocks"][part]:
      path = ("blocks", part, leaf)
      if leaf != "kernel":
        stored = start + name + (".bias" if leaf == "bias" else ".weight")
        yield _same(config, stored, path, layer)
        continue
      shape = _shape(config, path, layer)
      inputs = 2 if part == "output" else 1
      flat = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
      yield _linear(start + name + ".weight", path, layer, shape, flat, transposed)


def _linear(
  name: str,
  path: tuple[str, ...],
  layer: int,
  shape: tuple[int, ...],
  flat: tuple[int, int],
  transposed: bool,
) -> Entry:
  if not transposed:
    split, join = lambda w: (w.reshape(shape),), lambda k: k.reshape(flat)
    return Entry(name, flat, (path,), layer, split, join)
  split, join = lambda w: (w.T.reshape(shape),), lambda k: k.reshape(flat).T
  return Entry(name, flat[::-1], (path,), layer, split, join)
