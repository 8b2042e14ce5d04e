"""Maps Hugging Face tensors to parameters: names, transposes, fused projections."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from xpo_jax.models import transformer
from xpo_jax.models.config import Config, Norm


class WeightEntry(NamedTuple):
  """One tensor of a checkpoint.

  Attributes:
    name: in the safetensors file.
    shape: in the file.
    paths: paths of its parameters in the parameter tree; several where it is fused.
    layer: index in the stacked arrays, or None.
    split: converts the tensor to parameters, one for each path.
    join: converts the parameters to the tensor.
    expert: index of an expert in the stacked arrays, after the layer, or None.
    adaptable: False for kernels that no linear module holds, which PEFT does not adapt
      as it does the others.
  """

  name: str
  shape: tuple[int, ...]
  paths: tuple[tuple[str, ...], ...]
  layer: int | None
  split: Callable[[np.ndarray], tuple[np.ndarray, ...]]
  join: Callable[..., np.ndarray]
  expert: int | None = None
  adaptable: bool = True

  @property
  def index(self) -> Any:
    """Index in the stacked arrays."""
    if self.layer is None:
      return ...
    return self.layer if self.expert is None else (self.layer, self.expert)


def llama(config: Config) -> Iterator[WeightEntry]:
  """Lists the weights of Llama and the families that use its names."""
  names = _NAMES | _norm_names(config)
  yield from _ends(config, "model.embed_tokens", "model.norm", "lm_head")
  for layer in range(config.layers):
    yield from _layer(config, layer, f"model.layers.{layer}.", names)


def phi3(config: Config) -> Iterator[WeightEntry]:
  """Lists the weights of Phi-3: Llama's, with fused qkv and gate_up."""
  fused = {
    "self_attn.qkv_proj": ("query", "key", "value"),
    "mlp.gate_up_proj": ("gate", "up"),
  }
  names = {part: _NAMES[part] for part in ("output", "down")} | _norm_names(config)
  yield from _ends(config, "model.embed_tokens", "model.norm", "lm_head")
  for layer in range(config.layers):
    start = f"model.layers.{layer}."
    yield from _layer(config, layer, start, names)
    for name, parts in fused.items():
      yield _stacked(config, layer, f"{start}{name}.weight", parts)


def mixtral(config: Config) -> Iterator[WeightEntry]:
  """Lists the weights of Mixtral."""
  experts = {"gate": "w1", "up": "w3", "down": "w2"}
  yield from _with_experts(config, "block_sparse_moe", experts)


def qwen3_moe(config: Config) -> Iterator[WeightEntry]:
  """Lists the weights of Qwen3-MoE."""
  experts = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
  yield from _with_experts(config, "mlp", experts)


def gpt_oss(config: Config) -> Iterator[WeightEntry]:
  """Lists the weights of gpt-oss: experts in one tensor, gate and up interleaved."""
  E, D, F = config.experts.count, config.width, config.mlp_width
  yield from _ends(config, "model.embed_tokens", "model.norm", "lm_head")
  for layer in range(config.layers):
    start = f"model.layers.{layer}."
    yield from _layer(config, layer, start, _ATTENTION | _norm_names(config))
    yield WeightEntry(
      f"{start}self_attn.sinks",
      (config.heads,),
      (("blocks", "sink", "bias"),),
      layer,
      lambda x: (x,),
      lambda x: x,
    )
    for entry in _layer(config, layer, start, {"router": "mlp.router"}):
      yield entry._replace(adaptable=False)
    for leaf, suffix, shape in (("kernel", "", (E, D)), ("bias", "_bias", (E,))):
      yield WeightEntry(
        f"{start}mlp.experts.gate_up_proj{suffix}",
        (*shape, 2 * F),
        (("blocks", "gate", leaf), ("blocks", "up", leaf)),
        layer,
        lambda w: (w[..., ::2], w[..., 1::2]),
        lambda gate, up: np.stack([gate, up], axis=-1).reshape(*gate.shape[:-1], -1),
        adaptable=False,
      )
    for leaf, suffix, shape in (("kernel", "", (E, F, D)), ("bias", "_bias", (E, D))):
      yield WeightEntry(
        f"{start}mlp.experts.down_proj{suffix}",
        shape,
        (("blocks", "down", leaf),),
        layer,
        lambda w: (w,),
        lambda w: w,
        adaptable=False,
      )


def _with_experts(
  config: Config, mlp: str, experts: dict[str, str]
) -> Iterator[WeightEntry]:
  """Lists the weights of Llama with modules of experts in place of its MLP."""
  D, F = config.width, config.mlp_width
  yield from _ends(config, "model.embed_tokens", "model.norm", "lm_head")
  for layer in range(config.layers):
    start = f"model.layers.{layer}."
    names = _ATTENTION | _norm_names(config) | {"router": f"{mlp}.gate"}
    yield from _layer(config, layer, start, names)
    for expert in range(config.experts.count):
      for part, name in experts.items():
        shape = (F, D) if part == "down" else (D, F)
        yield _linear(
          f"{start}{mlp}.experts.{expert}.{name}.weight",
          ("blocks", part, "kernel"),
          layer,
          shape,
          shape,
          transposed=True,
        )._replace(expert=expert)


_ATTENTION = {
  "query": "self_attn.q_proj",
  "key": "self_attn.k_proj",
  "value": "self_attn.v_proj",
  "output": "self_attn.o_proj",
}
_NAMES = _ATTENTION | {
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}


def _norm_names(config: Config) -> dict[str, str]:
  names = {}
  if config.pre_norm:
    # Llama's name of the norm before the MLP is that of the one after attention where
    # there is such a one.
    before_mlp = "pre_feedforward" if config.post_norm else "post_attention"
    names["attention_norm"] = "input_layernorm"
    names["mlp_norm"] = f"{before_mlp}_layernorm"
  if config.post_norm:
    names["attention_post_norm"] = "post_attention_layernorm"
    names["mlp_post_norm"] = "post_feedforward_layernorm"
  if config.qk_norm is not None:
    names |= {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
  return names


def gpt_neox(config: Config) -> Iterator[WeightEntry]:
  """Lists the weights of GPT-NeoX (Pythia)."""
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
    # Interleaved: each head's query, key and value are contiguous.
    fused = start + "attention.query_key_value."
    yield WeightEntry(
      fused + "weight",
      (3 * D, D),
      _qkv("kernel"),
      layer,
      lambda w: tuple(np.moveaxis(w.reshape(H, 3, h, D), (1, 3), (0, 1))),
      lambda *qkv: np.moveaxis(np.stack(qkv), (0, 1), (1, 3)).reshape(3 * D, D),
    )
    if config.qkv_bias:
      yield WeightEntry(
        fused + "bias",
        (3 * D,),
        _qkv("bias"),
        layer,
        lambda b: tuple(np.moveaxis(b.reshape(H, 3, h), 1, 0)),
        lambda *qkv: np.stack(qkv, axis=1).reshape(3 * D),
      )


def gpt2(config: Config) -> Iterator[WeightEntry]:
  """Lists the weights of GPT-2."""
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
    # Conv1D: stored (in, out) like the parameters, not transposed.
    yield from _layer(config, layer, start, names, transposed=False)
    yield WeightEntry(
      start + "attn.c_attn.weight",
      (D, 3 * D),
      _qkv("kernel"),
      layer,
      lambda w: tuple(np.moveaxis(w.reshape(D, 3, H, h), 1, 0)),
      lambda *qkv: np.stack(qkv, axis=1).reshape(D, 3 * D),
    )
    yield WeightEntry(
      start + "attn.c_attn.bias",
      (3 * D,),
      _qkv("bias"),
      layer,
      lambda b: tuple(b.reshape(3, H, h)),
      lambda *qkv: np.stack(qkv).reshape(3 * D),
    )


def _stacked(
  config: Config, layer: int, name: str, parts: tuple[str, ...]
) -> WeightEntry:
  """Entry of linear maps of the same inputs, whose outputs follow one another."""
  paths = tuple(("blocks", part, "kernel") for part in parts)
  shapes = [_shape(config, path, layer) for path in paths]
  inputs = shapes[0][0]
  sizes = [math.prod(shape[1:]) for shape in shapes]
  cuts = np.cumsum(sizes)[:-1]
  return WeightEntry(
    name,
    (sum(sizes), inputs),
    paths,
    layer,
    lambda w: tuple(
      piece.T.reshape(shape)
      for piece, shape in zip(np.split(w, cuts), shapes, strict=True)
    ),
    lambda *kernels: np.concatenate([k.reshape(inputs, -1).T for k in kernels]),
  )


def _qkv(leaf: str) -> tuple[tuple[str, ...], ...]:
  return tuple(("blocks", part, leaf) for part in ("query", "key", "value"))


def _same(
  config: Config, name: str, path: tuple[str, ...], layer: int | None = None
) -> WeightEntry:
  """Entry of a tensor that differs from the parameter only in flattened axes."""
  shape = _shape(config, path, layer)
  flat = shape if layer is None else (math.prod(shape),)
  return WeightEntry(
    name, flat, (path,), layer, lambda x: (x.reshape(shape),), lambda x: x.reshape(flat)
  )


def _shape(config: Config, path: tuple[str, ...], layer: int | None) -> tuple:
  node: Any = transformer.weights(config)
  for key in path:
    node = node[key]
  return node.shape if layer is None else node.shape[1:]


def _ends(
  config: Config, embedding: str, norm: str, head: str
) -> Iterator[WeightEntry]:
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
) -> Iterator[WeightEntry]:
  """Lists the norms and linear maps of one layer; torch stores (out, in)."""
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
) -> WeightEntry:
  if not transposed:
    return WeightEntry(
      name,
      flat,
      (path,),
      layer,
      split=lambda w: (w.reshape(shape),),
      join=lambda k: k.reshape(flat),
    )
  return WeightEntry(
    name,
    flat[::-1],
    (path,),
    layer,
    split=lambda w: (w.T.reshape(shape),),
    join=lambda k: k.reshape(flat).T,
  )


def write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a safetensors file with the permissions of any new file: safetensors itself
  lets nobody but the owner read it."""
  path.touch()
  mode = path.stat().st_mode
  save_file(dict(tensors), path, metadata={"format": "pt"})
  path.chmod(mode)
