"""Saves and loads adapters in PEFT's format: adapter_config.json and safetensors.

`save` also writes `xpo_jax.json`, which PEFT ignores: the adapted parts, the L1
penalty, the digest of the base and its path from there. `load` accepts adapters without
it.

A module is `base_model.model.NAME.lora_A.weight` [rank, inputs] and `.lora_B.weight`
[outputs, rank], NAME that of the base's module in Hugging Face's model (PEFT's guide
"PEFT checkpoint format"); in DoRA also `.lora_magnitude_vector` [outputs], the norms of
the adapted weights. `lora` holds their difference to the base's, so that both functions
read the base.

GPT-2 and GPT-NeoX fuse query, key and value in one module, for which PEFT has one A;
`lora` has one A for each. They are saved as one adapter of the ranks' sum with a
block-diagonal B, with its rank and alpha in PEFT's `rank_pattern` and `alpha_pattern`:
the same function. A shared A of another source is loaded as three copies. In DoRA,
magnitudes of the module's outputs that are not adapted are the base's norms.

Experts of Mixtral and Qwen3-MoE are saved as modules of their own, as in transformers
4; under transformers 5, where they are one parameter, PEFT converts such an adapter as
it loads it, if both gate and up are adapted, or neither. An adapter that PEFT made
there is on the parameters: `target_parameters` names them, `mlp.experts.base_layer` is
on gate and up with one A of twice the rank, `mlp.experts` on down, `mlp.gate` on the
router. It is loaded as adapters of each expert. gpt-oss's router and experts are no
linear modules in either version and are not adapted.

Modules of different ranks and alphas are loaded as one form: factors of a smaller rank
are filled with zeros, and another scale is multiplied into B.

Where the decoder is a part of a larger model (Gemma 3 with images), modules have its
names there, `model.language_model.layers...`.
"""

import dataclasses
import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from xpo_jax.data import sealed_files
from xpo_jax.data.formats import hub
from xpo_jax.models import (
  hf_config,
  hf_families,
  hf_weights,
  lora,
  transformer,
  weights_source,
)
from xpo_jax.models.config import Config
from xpo_jax.models.lora import Adapter
from xpo_jax.sharding import distributed, nf4
from xpo_jax.types import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MAGNITUDE = ".lora_magnitude_vector"
_HEADER = "xpo_jax.json"

# PEFT's options that change what an adapter computes, with their neutral values.
_NEUTRAL = {
  "alora_invocation_tokens": None,
  "use_qalora": False,
  "peft_type": "LORA",
  "bias": "none",
  "modules_to_save": None,
  "layers_to_transform": None,
  "layer_replication": None,
}


class _Module(NamedTuple):
  """A linear module of the base.

  Attributes:
    name: Hugging Face's, without `.weight`.
    index: of the layer, or of the layer and the expert, in the stacked arrays.
    sizes: number of inputs and of outputs.
    outputs: part -> indices of its outputs among the module's.
    fan_in_first: whether the weight is stored as (inputs, outputs), as in GPT-2.
  """

  name: str
  index: int | tuple[int, int]
  sizes: tuple[int, int]
  outputs: dict[str, np.ndarray]
  fan_in_first: bool

  @property
  def suffix(self) -> str:
    """The name after the indices, equal in all layers and experts."""
    return re.split(r"\.\d+\.", self.name)[-1]


def save(
  directory: str | Path,
  config: Config,
  adapter: Adapter,
  *,
  params: Params,
  base: Params,
  base_name: str | None = None,
  wrapper: str = "",
) -> Path:
  """Saves a directory that PEFT's `PeftModel.from_pretrained` loads onto the base.

  Args:
    directory: created if it does not exist; must contain no adapter.
    config: of the decoder.
    adapter: configuration of `params`.
    params: a tree like that of `lora.init`.
    base: the decoder's parameters in training; `xpo_jax.json` has their digest and
      dtype.
    base_name: name of the base (`models.weights_source`), for
      `base_model_name_or_path`; a directory there is absolute.
    wrapper: see `hf_families.ModelFamily`, of the base as it is stored.

  Returns:
    The directory.

  Raises:
    ValueError: the directory contains an adapter already.
  """
  directory = Path(directory)
  if (directory / WEIGHTS).exists():
    raise ValueError(f"{directory} already contains an adapter; name a new directory")
  directory.mkdir(parents=True, exist_ok=True)
  blocks = jax.tree.map(np.asarray, jax.device_get(params["blocks"]))
  prefix = hf_config.find_family(config).prefix
  tensors = {}
  ranks = {}
  fan_in_first = False
  norms = functools.cache(functools.partial(lora.norms, base))
  for module in _modules(config):
    parts = [part for part in module.outputs if part in blocks]
    if not parts:
      continue
    fan_in_first |= module.fan_in_first
    ranks[module.suffix] = adapter.rank * len(parts)
    a, b = _join(module, {part: blocks[part] for part in parts})
    name = module.name.replace(prefix, prefix + wrapper, 1)
    tensors[f"{_PREFIX}{name}.lora_A.weight"] = a
    tensors[f"{_PREFIX}{name}.lora_B.weight"] = b
    if adapter.dora:
      tensors[_PREFIX + name + _MAGNITUDE] = _magnitude(module, blocks, norms)
  rank_pattern = {name: r for name, r in ranks.items() if r != adapter.rank}
  alpha_pattern = {
    name: dataclasses.replace(adapter, rank=r).alpha_of(adapter.scale)
    for name, r in rank_pattern.items()
  }
  if adapter.rslora and config.experts is not None and {"gate", "up"} <= blocks.keys():
    # Under transformers 5 PEFT doubles rank and alpha of the two, which keeps the scale
    # of plain LoRA only; a pattern of ours goes before its own.
    twice = dataclasses.replace(adapter, rank=2 * adapter.rank)
    alpha_pattern["experts.gate_up_proj"] = twice.alpha_of(adapter.scale)
  targets: Any = sorted(ranks)
  if wrapper:  # other parts of the model have modules of these names
    listed = "|".join(map(re.escape, targets))
    targets = rf".*{re.escape(wrapper)}.*\.({listed})"
  named, revision = _written_name(base_name)
  content = _NEUTRAL | {
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": named,
    "revision": revision,
    "inference_mode": True,
    "r": adapter.rank,
    "lora_alpha": _as_integer(adapter.alpha),
    "use_rslora": adapter.rslora,
    "use_dora": adapter.dora,
    "lora_dropout": 0.0,
    "init_lora_weights": True,
    "target_modules": targets,
    "fan_in_fan_out": fan_in_first,
    "rank_pattern": rank_pattern,
    "alpha_pattern": {name: _as_integer(x) for name, x in alpha_pattern.items()},
  }
  text = json.dumps(content, indent=2, sort_keys=True) + "\n"
  (directory / CONFIG).write_text(text, encoding="utf-8")
  dtype = _dtype(base)
  header = {"parts": sorted(blocks), "l1": adapter.l1, "base_dtype": dtype}
  header["base_sha256"] = _digest(config, base, dtype)
  if named is not None and Path(named).exists():
    header["base"] = os.path.relpath(named, directory.resolve())
  text = json.dumps(header, indent=2) + "\n"
  (directory / _HEADER).write_text(text, encoding="utf-8")
  hf_weights.write_file(directory / WEIGHTS, tensors)
  return directory


def load(directory: str | Path, config: Config, base: Params) -> tuple[Adapter, Params]:
  """Loads an adapter saved by `save` or by PEFT.

  Args:
    directory: contains the two files of PEFT's format; if it contains `xpo_jax.json`,
      the digest of the base must match.
    config: of the decoder.
    base: the decoder's parameters.

  Returns:
    The adapter's configuration, and its parameters in float32 on the host.

  Raises:
    ValueError: no adapter in the directory; an unsupported option of PEFT; an adapter
      of another base, by its modules, their sizes or the base's digest.
  """
  directory = Path(directory)
  content, header = _read(directory)
  with safe_open(directory / WEIGHTS, "numpy") as file:
    tensors = {n: file.get_tensor(n).astype(np.float32) for n in file.keys()}
  tensors, ranks = _by_module(config, content, header, tensors)
  modules = _adapted(config, tensors)
  problems = _problems(content, config, tensors, modules, ranks)
  if header is not None and not problems:
    dtype = header.get("base_dtype", "float32")
    if dtype == "nf4":
      base = lora.quantised(config, base)
    if header["base_sha256"] != _digest(config, base, dtype):
      problems.append("the base has other weights than the base of training")
  if problems:
    listed = "\n  ".join(sorted(problems)[:10])
    name = content.get("base_model_name_or_path")
    raise ValueError(
      f"{directory} is an adapter for another base (its own is {name!r}):\n  {listed}"
    )
  adapter = _form(content, header, modules, ranks)
  parts = lora.targets(config, adapter)
  shapes = lora.weights(config, adapter)
  norms = functools.cache(functools.partial(lora.norms, base))
  params = jax.tree.map(lambda weight: np.zeros(weight.shape, np.float32), shapes)
  for module in modules:
    a, b = (tensors[f"{_PREFIX}{module.name}.lora_{x}.weight"] for x in "AB")
    adapted = [part for part in module.outputs if part in parts]
    for i, part in enumerate(adapted):
      rank_slice = slice(None)  # a shared A
      if header is not None:
        rank_slice = slice(i * adapter.rank, (i + 1) * adapter.rank)
      one = {name: x[module.index] for name, x in params["blocks"][part].items()}
      own_a, own_b = a[rank_slice].T, b[module.outputs[part], rank_slice].T
      rank = len(own_b)
      one["a"][..., :rank] = own_a.reshape(*one["a"].shape[:-1], rank)
      one["b"][:rank] = own_b.reshape(rank, *one["b"].shape[1:])
      if adapter.dora:
        magnitude = tensors[_PREFIX + module.name + _MAGNITUDE][module.outputs[part]]
        norm = norms(part)[module.index]
        one["m"][...] = magnitude.reshape(norm.shape) - norm
  return adapter, params


def read_form(directory: Path, config: Config) -> Adapter:
  """Reads the configuration of an adapter, and none of its weights.

  Args:
    directory: see `load`.
    config: of the decoder.

  Raises:
    ValueError: as `load`, but the base is not looked at.
  """
  content, header = _read(directory)
  with safe_open(directory / WEIGHTS, "numpy") as file:
    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
  zero = np.zeros((), np.float32)
  tensors = {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}
  tensors, ranks = _by_module(config, content, header, tensors)
  return _form(content, header, _adapted(config, tensors), ranks)


def _by_module(
  config: Config,
  content: dict[str, Any],
  header: dict[str, Any] | None,
  tensors: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Arranges the tensors of a file by the modules of the decoder.

  Returns:
    The tensors by names of its modules alone, B multiplied by the ratio of its module's
    scale to that of adapter_config.json's `r` and `lora_alpha`; module -> rank.
  """
  by_module, ranks = {}, {}
  plain = _scale(content, content["r"], content["lora_alpha"])
  stacked = _stacked_names(content)
  for name, tensor in tensors.items():
    module = re.sub(r"\.lora_\w+(\.weight)?$", "", name.removeprefix(_PREFIX))
    suffix = next((s for s in stacked if module.endswith(f".{s}")), None)
    of_peft = module.removesuffix(suffix) + stacked[suffix] if suffix else module
    rank, alpha = (
      _of_pattern(content.get(f"{key}_pattern") or {}, of_peft, content[default])
      for key, default in (("rank", "r"), ("alpha", "lora_alpha"))
    )
    if header is None and name.endswith(".lora_B.weight"):
      tensor = tensor * np.float32(_scale(content, rank, alpha) / plain)
    by_module[_unwrapped(name)] = tensor
    ranks[_unwrapped(_PREFIX + module).removeprefix(_PREFIX)] = rank
  return _split_experts(config, content, by_module, ranks), ranks


def _scale(content: dict[str, Any], rank: int, alpha: float) -> float:
  return Adapter(rank, alpha, rslora=content.get("use_rslora", False)).scale


def _of_pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
  """The value of a module by PEFT's rule: the first pattern that its name ends with."""
  matching = (x for key, x in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
  return next(matching, default)


def _stacked_names(content: dict[str, Any]) -> dict[str, str]:
  """Suffix of a wrapper of PEFT's on a parameter -> the parameter's name.

  Of several parameters of a module, the wrapper of a later one is around the others'.
  """
  targets = [f".{name}" for name in content.get("target_parameters") or ()]
  names = {}
  if any(target.endswith(".gate.weight") for target in targets):
    names["mlp.gate"] = "mlp.gate.weight"
  wrapper = "mlp.experts"
  for parameter in ("down_proj", "gate_up_proj"):
    if any(target.endswith(f".{parameter}") for target in targets):
      names[wrapper] = f"mlp.experts.{parameter}"
      wrapper += ".base_layer"
  return names


def _split_experts(
  config: Config,
  content: dict[str, Any],
  tensors: dict[str, np.ndarray],
  ranks: dict[str, int],
) -> dict[str, np.ndarray]:
  """Splits adapters on the parameters of all experts into those of each expert.

  PEFT's A is [experts * rank, inputs], its B [outputs, rank * experts]; outputs of gate
  and up follow one another. What does not fit stays as it is. The modules of the
  decoder are added to `ranks`.
  """
  if config.experts is None or not (wrappers := _stacked_names(content)):
    return tensors
  found = dict(tensors)
  of_parameter = {name.split(".")[-1]: stem for stem, name in wrappers.items()}
  stale: set[str] = set()
  for module in _modules(config):
    names = re.fullmatch(r"(.*\.)(\w+)\.(?:gate|experts\.\d+\.\w+)", module.name)
    if names is None:
      continue
    (part,) = module.outputs
    parameter = {"router": "weight", "down": "down_proj"}.get(part, "gate_up_proj")
    stem = names[1] + of_parameter.get(parameter, "")
    a, b = (tensors.get(f"{_PREFIX}{stem}.lora_{x}.weight") for x in "AB")
    if a is None or b is None:
      continue
    rank = ranks[stem]
    if part != "router":
      E, expert, outputs = config.experts.count, module.index[1], module.sizes[1]
      whole = outputs if part == "down" else 2 * outputs
      if a.shape[0] != E * rank or b.shape != (whole, E * rank):
        continue
      start = outputs if part == "up" else 0
      a = a.reshape(E, rank, -1)[expert]
      b = b.reshape(whole, rank, E)[start : start + outputs, :, expert]
    for x, factor in (("A", a), ("B", b)):
      if stem != module.name:
        stale.add(f"{_PREFIX}{stem}.lora_{x}.weight")
      found[f"{_PREFIX}{module.name}.lora_{x}.weight"] = factor
    ranks[module.name] = rank
  return {name: x for name, x in found.items() if name not in stale}


def _adapted(config: Config, names: Collection[str]) -> list[_Module]:
  """The modules that an adapter with tensors of these names is on."""
  return [
    module
    for module in _modules(config)
    if f"{_PREFIX}{module.name}.lora_A.weight" in names
  ]


def _form(
  content: dict[str, Any],
  header: dict[str, Any] | None,
  modules: list[_Module],
  ranks: dict[str, int],
) -> Adapter:
  parts = {part for module in modules for part in module.outputs}
  if header is not None:
    parts = set(header["parts"])
  rank, alpha = content["r"], float(content["lora_alpha"])
  rslora = content.get("use_rslora", False)
  largest = max((ranks[module.name] for module in modules), default=rank)
  if header is None and largest != rank:
    scale = _scale(content, rank, alpha)
    rank, alpha = largest, Adapter(largest, rslora=rslora).alpha_of(scale)
  return Adapter(
    rank=rank,
    alpha=alpha,
    targets="|".join(f"blocks/{part}" for part in sorted(parts)),
    l1=0.0 if header is None else header["l1"],
    rslora=rslora,
    dora=content.get("use_dora", False),
  )


def is_adapter(directory: Path) -> bool:
  """Whether a directory holds an adapter in PEFT's format, and no whole model."""
  whole = ("model.safetensors", "model.safetensors.index.json")
  return (directory / CONFIG).exists() and not any(
    (directory / name).exists() for name in whole
  )


def base_of(directory: Path) -> str:
  """Finds the base of an adapter: a directory, or another name of
  `models.weights_source`.

  A directory that is not where it was is looked for at its path from the adapter, so
  that both can be moved together.

  Raises:
    ValueError: as `load`; it names no base, or a directory that does not exist.
  """
  content, header = _read(directory)
  named, revision = content.get("base_model_name_or_path"), content.get("revision")
  if not named:
    raise ValueError(
      f"{directory / CONFIG}: base_model_name_or_path is {named!r}; it must be the "
      "directory or the repository of the adapter's base"
    )
  if Path(named).exists():
    return named
  if header is not None and "base" in header:
    beside = Path(os.path.normpath(directory.resolve() / header["base"]))
    if beside.exists():
      return str(beside)
  if re.fullmatch(r"[\w-]+/[\w.-]+", named):
    return f"{hub.PREFIX}{named}" + (f"@{revision}" if revision else "")
  raise ValueError(
    f"{directory} is an adapter for the base {named}, which does not exist; put it "
    "back, or write its path to base_model_name_or_path of a copy of the adapter"
  )


def _written_name(base_name: str | None) -> tuple[str | None, str | None]:
  """The name of a base for PEFT, and its revision."""
  if base_name is None:
    return None, None
  if base_name.startswith(hub.PREFIX):
    address = hub.parse(base_name)
    return address.repo, address.revision
  if not Path(base_name).exists():
    return base_name, None
  # PEFT reads no GGUF file, but the directory made of it.
  return str(weights_source.directory(base_name).resolve()), None


def _unwrapped(name: str) -> str:
  """The name of a tensor in the decoder alone."""
  for family in hf_families.FAMILIES.values():
    if family.wrapper:
      name = name.replace(family.wrapper, "", 1)
  return name


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
  """Reads adapter_config.json, its options checked, and xpo_jax.json, if any."""
  for name in (CONFIG, WEIGHTS):
    if not (directory / name).exists():
      raise ValueError(f"{directory} has no adapter: {name} does not exist")
  sealed_files.check_directory(directory)
  content = sealed_files.read_json(directory / CONFIG)
  _check_options(directory, content)
  path = directory / _HEADER
  return content, sealed_files.read_json(path) if path.exists() else None


def _join(module: _Module, blocks: dict[str, Params]) -> tuple[np.ndarray, np.ndarray]:
  """Joins the factors of the parts to the module's A and B."""
  inputs, outputs = module.sizes
  factors = [
    (pair["a"][module.index].reshape(inputs, -1), pair["b"][module.index])
    for pair in blocks.values()
  ]
  a = np.ascontiguousarray(np.concatenate([a.T for a, _ in factors]), np.float32)
  b = np.zeros((outputs, len(a)), np.float32)
  start = 0
  for part, (_, one) in zip(blocks, factors, strict=True):
    one = one.reshape(one.shape[0], -1)
    b[module.outputs[part], start : start + len(one)] = one.T
    start += len(one)
  return a, b


def _magnitude(
  module: _Module, blocks: dict[str, Params], norms: Callable[[str], np.ndarray]
) -> np.ndarray:
  """The magnitudes of all the module's outputs, adapted or not."""
  joined = np.zeros(module.sizes[1], np.float32)
  for part, outputs in module.outputs.items():
    magnitude = norms(part)[module.index]
    if part in blocks:
      magnitude = magnitude + blocks[part]["m"][module.index]
    joined[outputs] = magnitude.reshape(-1)
  return joined


def _modules(config: Config) -> list[_Module]:
  """Lists the linear modules of all layers and experts, in the checkpoint's order."""
  return [
    _module(entry)
    for entry in hf_config.find_family(config).entries(config)
    if entry.adaptable
    and entry.paths[0][0] == "blocks"
    and entry.paths[0][-1] == "kernel"
  ]


def _module(entry: hf_weights.WeightEntry) -> _Module:
  """Derives the layout of a module by splitting a tensor of its own flat indices."""
  indices = entry.split(np.arange(math.prod(entry.shape)).reshape(entry.shape))
  outputs = {}
  for (_, part, _), index in zip(entry.paths, indices, strict=True):
    inputs = math.prod(index.shape[: transformer.input_axes(part)])
    index = index.reshape(inputs, -1)
    fan_in_first = bool(inputs > 1 and index[1, 0] - index[0, 0] > 1)
    outputs[part] = index[0] if fan_in_first else index[0] // inputs
  sizes = (inputs, math.prod(entry.shape) // inputs)
  name = entry.name.removesuffix(".weight")
  return _Module(name, entry.index, sizes, outputs, fan_in_first)


def _check_options(directory: Path, content: dict[str, Any]) -> None:
  for name, neutral in _NEUTRAL.items():
    value = content.get(name, neutral)
    if value != neutral and not (neutral is None and not value):
      raise ValueError(
        f"{directory / CONFIG}: {name} is {value!r}; supported: {neutral!r}. Merge the "
        "adapter into its base (PEFT's merge_and_unload) and load the merged model"
      )
  init = content.get("init_lora_weights", True)
  if isinstance(init, str) and init != "gaussian":
    raise ValueError(
      f"{directory / CONFIG}: init_lora_weights is {init!r}, which may alter the base "
      'too; supported: true, false, "gaussian". Save it from PEFT as plain LoRA '
      "(save_pretrained's path_initial_model_for_weight_conversion), or merge it "
      "(merge_and_unload) and load the merged model"
    )


def _problems(
  content: dict[str, Any],
  config: Config,
  tensors: dict[str, np.ndarray],
  modules: list[_Module],
  ranks: dict[str, int],
) -> list[str]:
  """Lists why an adapter does not fit the base or is not supported."""
  shapes: dict[str, tuple[int, ...]] = {}
  problems = []
  for module in modules:
    rank = ranks[module.name]
    inputs, outputs = module.sizes
    shapes[f"{_PREFIX}{module.name}.lora_A.weight"] = (rank, inputs)
    shapes[f"{_PREFIX}{module.name}.lora_B.weight"] = (outputs, rank)
    if content.get("use_dora", False):
      shapes[_PREFIX + module.name + _MAGNITUDE] = (outputs,)
  extra = tensors.keys() - shapes
  problems += [f"it has {name}, the base no such linear module" for name in extra]
  for name, expected in shapes.items():
    shape = tensors[name].shape if name in tensors else None
    if shape != expected:
      problems.append(f"{name} has shape {shape}, the base requires {expected}")
  adapted = Counter(module.suffix for module in modules)
  of_base = Counter(module.suffix for module in _modules(config))
  for suffix in sorted(adapted):
    if adapted[suffix] != of_base[suffix]:
      problems.append(
        f"{suffix} is adapted in some layers or experts only; supported: all or none"
      )
  if not modules:
    problems.append("it has no module of the base")
  return problems


def is_of_nf4(directory: Path) -> bool:
  """Whether an adapter was trained on a base in 4 bits (`Precision.base`)."""
  header = _read(directory)[1] or {}
  return header.get("base_dtype") == "nf4"


def _dtype(base: Params) -> str:
  """What a base's matrices were in training, a value of `Precision.base`."""
  leaves = jax.tree.leaves(base, is_leaf=nf4.is_nf4)
  if any(map(nf4.is_nf4, leaves)):
    return "nf4"
  narrow = any(jnp.result_type(x) == jnp.bfloat16 for x in leaves)
  return "bfloat16" if narrow else "float32"


def _digest(config: Config, base: Params, dtype: str) -> str:
  """The digest of a base, all of it rounded where its matrices were in training: equal
  for the stored base and the rounded one."""
  base = jax.device_get(base)
  if dtype == "nf4":
    base = lora.quantised(config, base)
  if dtype != "float32":
    base = jax.tree.map(
      lambda x: x if nf4.is_nf4(x) else x.astype(jnp.bfloat16), base, is_leaf=nf4.is_nf4
    )
  return distributed.digest(base).tobytes().hex()


def _as_integer(number: float) -> int | float:
  """Converts an integral number to int, the type of PEFT's alpha."""
  return int(number) if float(number).is_integer() else number
