"""Adapters in and out of PEFT's format: adapter_config.json, adapter_model.safetensors.

Beside the two lies `xpo_jax.json`, which PEFT does not read: the adapted parts, the L1
penalty and the digest of the base. Adapters from elsewhere do without it.

A module is `base_model.model.NAME.lora_A.weight` [rank, inputs] and `.lora_B.weight`
[outputs, rank], NAME that of the base's module in Hugging Face's model (PEFT's guide
"PEFT checkpoint format").

GPT-2 and GPT-NeoX hold query, key and value in one module, where PEFT has one A for
the three; ours have an A each. They are written as one adapter of the ranks' sum whose
B is zero off its blocks, with its rank and alpha in PEFT's `rank_pattern` and
`alpha_pattern`: the same function. Read from elsewhere, a shared A becomes three.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from xpo_jax.models import hf_config, hf_weights, lora
from xpo_jax.models.config import Config
from xpo_jax.models.lora import Adapter
from xpo_jax.sharding import distributed
from xpo_jax.types import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OURS = "xpo_jax.json"

# Features of PEFT that change what an adapter computes, and the value that does not.
_PLAIN = {
  "alora_invocation_tokens": None,
  "use_qalora": False,
  "peft_type": "LORA",
  "bias": "none",
  "use_rslora": False,
  "use_dora": False,
  "modules_to_save": None,
  "layers_to_transform": None,
  "layer_replication": None,
}


class _Module(NamedTuple):
  """A linear module of the base.

  Attributes:
    name: Hugging Face's, without `.weight`.
    layer: its number.
    sizes: inputs and outputs.
    rows: our layer -> where its outputs stand among the module's.
    fan_in_first: whether the weight is stored (inputs, outputs), as in GPT-2.
  """

  name: str
  layer: int
  sizes: tuple[int, int]
  rows: dict[str, np.ndarray]
  fan_in_first: bool

  @property
  def tail(self) -> str:
    """The name after the layer's number, the same in every layer."""
    return self.name.split(f".{self.layer}.", 1)[1]


def save(
  directory: str | Path,
  config: Config,
  adapter: Adapter,
  params: Params,
  base: Params,
  base_name: str | None = None,
) -> Path:
  """Writes a directory that PEFT's `PeftModel.from_pretrained` loads onto the base.

  Args:
    directory: made if it does not exist; must hold no adapter yet.
    config: of the decoder.
    adapter: what `params` are.
    params: of `lora.init`'s tree.
    base: the decoder's parameters that they were trained on; `xpo_jax.json` keeps
      their digest.
    base_name: where the base is, for `base_model_name_or_path`.

  Returns:
    The directory.

  Raises:
    ValueError: the directory holds an adapter already.
  """
  directory = Path(directory)
  if (directory / WEIGHTS).exists():
    raise ValueError(f"{directory} already holds an adapter; name a new directory")
  directory.mkdir(parents=True, exist_ok=True)
  blocks = jax.tree.map(np.asarray, jax.device_get(params["blocks"]))
  tensors, ranks, fan_in_first = {}, {}, False
  for module in _modules(config):
    held = [part for part in module.rows if part in blocks]
    if not held:
      continue
    fan_in_first |= module.fan_in_first
    ranks[module.tail] = adapter.rank * len(held)
    a, b = _joined(module, {part: blocks[part] for part in held})
    tensors[f"{_PREFIX}{module.name}.lora_A.weight"] = a
    tensors[f"{_PREFIX}{module.name}.lora_B.weight"] = b
  several = {tail: rank for tail, rank in ranks.items() if rank != adapter.rank}
  content = _PLAIN | {
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_name,
    "revision": None,
    "inference_mode": True,
    "r": adapter.rank,
    "lora_alpha": _plain(adapter.alpha),
    "lora_dropout": 0.0,
    "init_lora_weights": True,
    "target_modules": sorted(ranks),
    "fan_in_fan_out": fan_in_first,
    "rank_pattern": several,
    "alpha_pattern": {n: _plain(r * adapter.scale) for n, r in several.items()},
  }
  text = json.dumps(content, indent=2, sort_keys=True) + "\n"
  (directory / CONFIG).write_text(text, encoding="utf-8")
  ours = {"parts": sorted(blocks), "l1": adapter.l1, "base_sha256": _digest(base)}
  (directory / _OURS).write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
  save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
  return directory


def load(directory: str | Path, config: Config, base: Params) -> tuple[Adapter, Params]:
  """Reads an adapter of ours or of PEFT's onto a base.

  Args:
    directory: holds the two files of PEFT's format; where `xpo_jax.json` is beside
      them, the base must have the digest it holds.
    config: of the decoder.
    base: the decoder's parameters it is to hang on.

  Returns:
    The adapter, and its parameters in float32 on the host.

  Raises:
    ValueError: no adapter there; a feature of PEFT that is not supported; an adapter
      for another base, by its modules, their sizes or the base's digest.
  """
  directory = Path(directory)
  for name in (CONFIG, WEIGHTS):
    if not (directory / name).exists():
      raise ValueError(f"{directory} holds no adapter: {name} does not exist")
  content = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
  _check_plain(directory, content)
  beside = directory / _OURS
  header = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
  with safe_open(directory / WEIGHTS, "numpy") as file:
    tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}
  found = [m for m in _modules(config) if f"{_PREFIX}{m.name}.lora_A.weight" in tensors]
  _check_base(directory, content, config, base, header, tensors, found)
  parts = {part for module in found for part in module.rows}
  if header is not None:
    parts = set(header["parts"])
  adapter = Adapter(
    rank=content["r"],
    alpha=float(content["lora_alpha"]),
    targets="|".join(f"blocks/{part}" for part in sorted(parts)),
    l1=0.0 if header is None else header["l1"],
  )
  shapes = lora.weights(config, adapter)
  params = jax.tree.map(lambda weight: np.zeros(weight.shape, np.float32), shapes)
  for module in found:
    pair = (tensors[f"{_PREFIX}{module.name}.lora_{x}.weight"] for x in "AB")
    held = [part for part in module.rows if part in parts]
    for part, factors in _split(module, *pair, held, adapter.rank, header).items():
      for name, value in factors.items():
        kept = params["blocks"][part][name]
        kept[module.layer] = value.reshape(kept.shape[1:])
  return adapter, params


def _joined(
  module: _Module, blocks: dict[str, Params]
) -> tuple[np.ndarray, np.ndarray]:
  """The module's A and B of our layers' factors."""
  inputs, outputs = module.sizes
  factors = [
    (pair["a"][module.layer].reshape(inputs, -1), pair["b"][module.layer])
    for pair in blocks.values()
  ]
  a = np.ascontiguousarray(np.concatenate([a.T for a, _ in factors]), np.float32)
  b = np.zeros((outputs, len(a)), np.float32)
  start = 0
  for part, (_, one) in zip(blocks, factors, strict=True):
    one = one.reshape(one.shape[0], -1)
    b[module.rows[part], start : start + len(one)] = one.T
    start += len(one)
  return a, b


def _split(
  module: _Module,
  a: np.ndarray,
  b: np.ndarray,
  held: list[str],
  rank: int,
  header: dict[str, Any] | None,
) -> dict[str, Params]:
  """Our layers' factors of the module's A and B."""
  out = {}
  for i, part in enumerate(held):
    at = slice(i * rank, (i + 1) * rank) if header is not None else slice(None)
    out[part] = {"a": a[at].T, "b": b[module.rows[part], at].T}
  return out


def _modules(config: Config) -> list[_Module]:
  """The linear modules of all layers, in the order of the checkpoint."""
  return [
    _module(entry)
    for entry in hf_config.of(config).entries(config)
    if entry.paths[0][0] == "blocks" and entry.paths[0][-1] == "kernel"
  ]


def _module(entry: hf_weights.Entry) -> _Module:
  """Read off how the entry cuts a tensor that holds the numbers of its own places."""
  places = entry.split(np.arange(math.prod(entry.shape)).reshape(entry.shape))
  rows = {}
  for (_, part, _), place in zip(entry.paths, places, strict=True):
    inputs = math.prod(place.shape[: lora.inputs(part)])
    place = place.reshape(inputs, -1)
    fan_in_first = bool(inputs > 1 and place[1, 0] - place[0, 0] > 1)
    rows[part] = place[0] if fan_in_first else place[0] // inputs
  sizes = (inputs, math.prod(entry.shape) // inputs)
  name = entry.name.removesuffix(".weight")
  return _Module(name, entry.layer, sizes, rows, fan_in_first)


def _check_plain(directory: Path, content: dict[str, Any]) -> None:
  for name, plain in _PLAIN.items():
    value = content.get(name, plain)
    if value != plain and not (plain is None and not value):
      raise ValueError(
        f"{directory / CONFIG}: {name} is {value!r}; supported: {plain!r}. Merge the "
        "adapter into its base (PEFT's merge_and_unload) and load the merged model"
      )
  first = content.get("init_lora_weights", True)
  if isinstance(first, str) and first != "gaussian":
    raise ValueError(
      f"{directory / CONFIG}: init_lora_weights is {first!r}, which may alter the base "
      'too; supported: true, false, "gaussian". Save it from PEFT as plain LoRA '
      "(save_pretrained's path_initial_model_for_weight_conversion), or merge it "
      "(merge_and_unload) and load the merged model"
    )


def _check_base(
  directory: Path,
  content: dict[str, Any],
  config: Config,
  base: Params,
  header: dict[str, Any] | None,
  tensors: dict[str, np.ndarray],
  found: list[_Module],
) -> None:
  """Refuses an adapter that was not made for the base, or that we cannot hold."""
  wanted, problems = {}, []
  patterns = content.get("rank_pattern") or {}
  if header is None and (patterns or content.get("alpha_pattern")):
    problems.append("its modules have different ranks or alphas")
  for module in found:
    rank = patterns.get(module.tail, content["r"])
    inputs, outputs = module.sizes
    wanted[f"{_PREFIX}{module.name}.lora_A.weight"] = (rank, inputs)
    wanted[f"{_PREFIX}{module.name}.lora_B.weight"] = (outputs, rank)
  problems += [f"it has {n}, the base no such module" for n in tensors.keys() - wanted]
  for name, shape in wanted.items():
    has = tensors[name].shape if name in tensors else None
    if has != shape:
      problems.append(f"{name} has shape {has}, the base makes it {shape}")
  tails = [module.tail for module in found]
  for tail in sorted(set(tails)):
    if tails.count(tail) != config.layers:
      problems.append(f"{tail} is adapted in some layers only; here in all or none")
  if not found:
    problems.append("no module of the base is in it")
  if header is not None and not problems and header["base_sha256"] != _digest(base):
    problems.append("the base has other weights than those it was trained on")
  if problems:
    shown = "\n  ".join(sorted(problems)[:10])
    name = content.get("base_model_name_or_path")
    raise ValueError(
      f"{directory} is an adapter for another base (its own is {name!r}):\n  {shown}"
    )


def _digest(base: Params) -> str:
  return distributed.digest(jax.device_get(base)).tobytes().hex()


def _plain(number: float) -> int | float:
  """PEFT's alpha is an integer."""
  return int(number) if float(number).is_integer() else number
