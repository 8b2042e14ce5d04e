"""Loads and saves Hugging Face directories: safetensors, tokenizer, chat template.

A directory of an adapter in PEFT's format stands for its base with the adapter merged.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from xpo_jax.data import sealed_files
from xpo_jax.models import (
  hf_config,
  hf_families,
  hf_weights,
  lora,
  peft,
  transformer,
  weights_source,
)
from xpo_jax.models.config import Config, Remat
from xpo_jax.models.lora import Adapter
from xpo_jax.sharding import nf4, rules
from xpo_jax.types import Params

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_VALUE_HEAD = "value_head.safetensors"
_TOKENIZER = "tokenizer_config.json"
_GENERATION = "generation_config.json"
# transformers' classes of a decoder with a linear map of its last state.
_CLASSIFIER, _SCORE = "ForSequenceClassification", "score.weight"
_SHARD_BYTES = 5_000_000_000
_FETCHED_AT_ONCE = 1 << 30  # bytes of a tree that is fetched whole from its devices


class Checkpoint(NamedTuple):
  """A model as a Hugging Face directory holds it.

  Attributes:
    config: of the decoder.
    params: `{"lm": ..., "value": ...}`, float32 arrays on the host; "value" only
      where the directory has a scalar head.
    tokenizer: of transformers, or None where the directory has none.
  """

  config: Config
  params: Params
  tokenizer: Any


class Adapted(NamedTuple):
  """A directory of an adapter, with its base, not merged.

  Attributes:
    base: the base; its tokenizer is the adapter's, where the adapter has one, and its
      scalar head the adapter's, or none. Where the adapter was trained on a base in 4
      bits, these are its values.
    name: of the base (`models.weights_source`).
    adapter: configuration.
    params: the adapter's parameters, float32 arrays on the host.
  """

  base: Checkpoint
  name: str
  adapter: Adapter
  params: Params

  def merged(self) -> Checkpoint:
    """The base with the adapter merged."""
    lm = lora.merged(self.base.params["lm"], self.params, self.adapter)
    params = self.base.params | {"lm": jax.device_get(lm)}
    return self.base._replace(params=params)


def read_config(directory: str | Path) -> Config:
  """Reads the decoder's config from a Hugging Face directory's config.json.

  Raises:
    ValueError: no such file, or an unsupported model family or feature.
  """
  directory = weights_source.directory(directory)
  if peft.is_adapter(directory):
    return read_config(peft.base_of(directory))
  content = _json(directory / "config.json")
  family = hf_config.get_family(content)
  try:
    hf = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
  except Exception as error:  # of many types, by field
    reason = " ".join(str(error).split())
    raise ValueError(
      f"{directory}: transformers cannot read config.json: {reason}"
    ) from error
  config = family.read(hf)
  return hf_config.with_family(config, content["model_type"])


def read_tokenizer(directory: str | Path) -> Any:
  """Reads the tokenizer of a directory; code that the directory brings is not run.

  Raises:
    ValueError: a tokenizer that is code of the directory's own; no tokenizer, or a
      damaged one.
  """
  directory = weights_source.directory(directory)
  if peft.is_adapter(directory) and not (directory / _TOKENIZER).exists():
    return read_tokenizer(peft.base_of(directory))
  try:
    # Given, since transformers otherwise asks on a terminal.
    return transformers.AutoTokenizer.from_pretrained(
      directory, trust_remote_code=False
    )
  except Exception as error:  # of many types, by tokenizer
    if "custom code" in str(error):
      raise ValueError(
        f"{directory}: its tokenizer is code of its own (auto_map in {_TOKENIZER}), "
        "which is never run; save it with a tokenizer class of transformers"
      ) from error
    for file in (Path(directory) / _TOKENIZER, Path(directory) / "tokenizer.json"):
      if file.exists():
        _json(file)  # names the file that is damaged
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ValueError(f"{directory}: the tokenizer cannot be read: {reason}") from error


def load(
  directory: str | Path,
  compute_dtype: str = "float32",
  remat: Remat = "full",
  mesh: Mesh | None = None,
) -> Checkpoint:
  """Loads a Hugging Face directory; checks everything before it reads weights.

  Args:
    directory: contains config.json and safetensors, whole or in indexed shards, of any
      float dtype; optionally a tokenizer and a scalar head written by `save`. Or an
      adapter, which is merged into its base. Or what stands for one: a repository of
      the hub, a GGUF file (`weights_source`).
    compute_dtype: see `Config`.
    remat: see `Config`.
    mesh: on which the decoder's parameters are placed, split by their logical axes: the
      host never holds more than one of them, less where it has a part of the devices.
      None: arrays on the host, as of an adapter, which is merged there.

  Returns:
    The checkpoint; parameters in float32 for any dtype of the file.

  Raises:
    ValueError: no such directory or file; a file that differs from its checksum, where
      the directory has a manifest; an unsupported model family or feature; missing,
      mis-shaped or unexpected weights (all are listed); a tokenizer with more tokens
      than the embedding has rows; a classifier, see `load_classifier`; an adapter whose
      base is not there or is another, see `peft.load`.
  """
  directory = weights_source.directory(directory)
  if peft.is_adapter(directory):
    return load_adapted(directory, compute_dtype, remat).merged()
  sealed_files.check_directory(directory)
  if is_classifier(directory):
    raise ValueError(
      f"{directory} is a reward model ({_architecture(directory)}), which has no head "
      "over the vocabulary and cannot be a start, reference or teacher; name it as a "
      "reward or as the start of a critic"
    )
  family = _family(directory)
  config = dataclasses.replace(
    read_config(directory), compute_dtype=compute_dtype, remat=remat
  )
  entries = list(family.entries(config))
  files = _weight_files(directory, family, {entry.name for entry in entries})
  files = _without_tied_head(family, config, files)
  _check(directory, family, entries, files)
  tokenizer = _load_tokenizer(directory, config)
  config = dataclasses.replace(config, stop_ids=_stop_ids(directory, config, tokenizer))
  if mesh is None:
    lm = _read(config, entries, files)
  else:
    lm = _read_on(mesh, config, entries, files)
  return Checkpoint(config, {"lm": lm} | _read_head(directory), tokenizer)


def _read_head(directory: Path) -> Params:
  """`{"value": ...}` of a directory with a scalar head, else {}."""
  if not (directory / _VALUE_HEAD).exists():
    return {}
  with _open(directory / _VALUE_HEAD) as tensors:
    return {"value": {name: tensors.get_tensor(name) for name in tensors.keys()}}


def is_adapter(directory: str | Path) -> bool:
  """Whether a directory is of an adapter, which `load_adapted` reads."""
  return peft.is_adapter(weights_source.directory(directory))


def load_adapted(
  directory: str | Path, compute_dtype: str = "float32", remat: Remat = "full"
) -> Adapted:
  """Loads the adapter of a directory and its base, which may be an adapter too.

  The arguments and errors are those of `load`.
  """
  directory = weights_source.directory(directory)
  name = peft.base_of(directory)
  base = load(name, compute_dtype, remat)
  lm = base.params["lm"]
  adapter, params = peft.load(directory, base.config, lm)
  if peft.is_of_nf4(directory):
    lm = jax.device_get(nf4.dense(lora.quantised(base.config, lm)))
  config, tokenizer = base.config, _load_tokenizer(directory, base.config)
  if tokenizer is None:
    tokenizer = base.tokenizer
  else:
    stop_ids = sorted({*config.stop_ids} - {tokenizer.eos_token_id})
    config = dataclasses.replace(config, stop_ids=tuple(stop_ids))
  own = {"lm": lm} | _read_head(directory)
  return Adapted(Checkpoint(config, own, tokenizer), name, adapter, params)


def is_classifier(directory: str | Path) -> bool:
  """Whether a directory holds a `*ForSequenceClassification` of transformers."""
  directory = weights_source.directory(directory)
  if peft.is_adapter(directory):
    return False
  return _architecture(directory).endswith(_CLASSIFIER)


def load_classifier(
  directory: str | Path, compute_dtype: str = "float32", remat: Remat = "full"
) -> Checkpoint:
  """Loads a `*ForSequenceClassification` of one label, checked as by `load`.

  Args:
    directory: see `load`.
    compute_dtype: see `Config`.
    remat: see `Config`.

  Returns:
    The checkpoint. Its scalar head, of bias 0, is `score.weight`; its config ties the
    head over the vocabulary, which a classifier has not, to the embedding.

  Raises:
    ValueError: another architecture, another number of labels, or as `load`.
  """
  directory = weights_source.directory(directory)
  sealed_files.check_directory(directory)
  family = _family(directory)
  _check_labels(directory)
  whole = dataclasses.replace(
    read_config(directory), compute_dtype=compute_dtype, remat=remat, tied=False
  )
  config = dataclasses.replace(whole, tied=True)
  entries = list(family.entries(config))
  names = {entry.name for entry in entries}
  unused = {entry.name for entry in family.entries(whole)} - names
  files = _weight_files(directory, family, names)
  files = {name: stored for name, stored in files.items() if name not in unused}
  score = _score(config)
  _check(directory, family, [*entries, score], files)
  tokenizer = _load_tokenizer(directory, config)
  (kernel_D,) = score.split(files[_SCORE].read())
  head = {"kernel_D": kernel_D, "bias": np.zeros((), np.float32)}
  params = {"lm": _read(config, entries, files), "value": head}
  return Checkpoint(config, params, tokenizer)


def _architecture(directory: Path) -> str:
  """The class of transformers that a directory was saved from; "" if unknown."""
  named = _json(directory / "config.json").get("architectures")
  return str(named[0]) if isinstance(named, list) and named else ""


def _check_labels(directory: Path) -> None:
  architecture = _architecture(directory)
  if not architecture.endswith(_CLASSIFIER):
    raise ValueError(
      f"{directory}: config.json: architectures is {architecture or None!r}; a reward "
      f"model is a *{_CLASSIFIER} with one label"
    )
  content = _json(directory / "config.json")
  names = content.get("id2label")
  labels = content.get("num_labels", 2) if names is None else len(names)
  if labels != 1:  # 2 is transformers' default
    raise ValueError(
      f"{directory}: config.json: {architecture} has {labels} labels; a reward model "
      "has one"
    )


def _score(config: Config) -> hf_weights.WeightEntry:
  return hf_weights.WeightEntry(
    _SCORE,
    (1, config.width),
    (("value", "kernel_D"),),
    None,
    split=lambda w: (w[0],),
    join=lambda kernel_D: kernel_D[None],
  )


def _family(directory: Path) -> hf_families.ModelFamily:
  return hf_config.get_family(_json(directory / "config.json"))


def _json(path: Path) -> dict[str, Any]:
  if not path.exists():
    raise ValueError(
      f"{path} does not exist; name a local Hugging Face directory "
      "(`hf download NAME --local-dir DIRECTORY` creates one)"
    )
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:  # also no UTF-8
    raise ValueError(f"{path} is not JSON: {_why(path, error)}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds no JSON object; download it again")
  return content


def _why(path: Path, error: Exception) -> str:
  """Why a file cannot be read, and the fix."""
  with path.open("rb") as file:
    if file.read(40).startswith(b"version https://git-lfs"):
      return "it is a pointer of Git LFS, not the file: `git lfs pull` downloads it"
  reason = " ".join(str(error).split())[:200]
  return f"{reason}; it was cut or is damaged: download it again"


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
  """Opens a file of safetensors.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    with safe_open(file, "numpy") as tensors:
      yield tensors
  except (SafetensorError, OSError) as error:
    raise ValueError(
      f"{file} cannot be read as safetensors: {_why(file, error)}"
    ) from error


class _Stored(NamedTuple):
  """A tensor's file and its name in the file."""

  file: Path
  name: str

  def shape(self) -> tuple[int, ...]:
    with _open(self.file) as tensors:
      return tuple(tensors.get_slice(self.name).get_shape())

  def read(self) -> np.ndarray:
    with _open(self.file) as tensors:
      tensor = tensors.get_tensor(self.name).astype(np.float32)
    if not np.isfinite(tensor).all():
      raise ValueError(
        f"weight {self.name} in {self.file} has numbers that are not finite; the "
        "checkpoint is damaged, or of a run that diverged"
      )
    return tensor


def _weight_files(
  directory: Path, family: hf_families.ModelFamily, known: set[str]
) -> dict[str, _Stored]:
  """Returns every stored tensor by its full name."""
  if (directory / _INDEX).exists():
    file_of = _json(directory / _INDEX).get("weight_map")
    if not isinstance(file_of, dict):
      raise ValueError(f"{directory / _INDEX} has no weight_map; download it again")
  elif (directory / _SINGLE).exists():
    with _open(directory / _SINGLE) as tensors:
      file_of = dict.fromkeys(tensors.keys(), _SINGLE)
  else:
    raise ValueError(
      f"{directory} has neither {_SINGLE} nor {_INDEX}; convert the checkpoint to "
      "safetensors"
    )
  missing = sorted({f for f in file_of.values() if not (directory / f).exists()})
  if missing:
    raise ValueError(
      f"{directory / _INDEX} names files that do not exist: {missing}; download them"
    )
  return {
    _full_name(family, known, name): _Stored(directory / file, name)
    for name, file in file_of.items()
  }


def _full_name(family: hf_families.ModelFamily, known: set[str], name: str) -> str:
  own = name.replace(family.wrapper, "", 1) if family.wrapper else name
  # Checkpoints of the base model (the hub's gpt2) omit the prefix.
  return family.prefix + own if family.prefix + own in known else own


def _without_tied_head(
  family: hf_families.ModelFamily, config: Config, files: dict[str, _Stored]
) -> dict[str, _Stored]:
  """Leaves out a stored head that equals the embedding to which the config ties it."""
  if not config.tied:
    return files
  untied = list(family.entries(dataclasses.replace(config, tied=False)))
  tied = {entry.name for entry in family.entries(config)}
  heads = [entry.name for entry in untied if entry.name not in tied]
  embedding = next(e.name for e in untied if e.paths == (("embedding",),))
  return {
    name: stored
    for name, stored in files.items()
    if not (
      name in heads
      and embedding in files
      and np.array_equal(stored.read(), files[embedding].read())
    )
  }


def _check(
  directory: Path,
  family: hf_families.ModelFamily,
  entries: list[hf_weights.WeightEntry],
  files: dict[str, _Stored],
) -> None:
  shapes = {entry.name: entry.shape for entry in entries}
  extra = [
    name
    for name in files
    if name not in shapes and not re.fullmatch(family.buffers, name)
  ]
  problems = [f"missing weight {name}" for name in shapes if name not in files]
  problems += [f"unexpected weight {name}" for name in extra]
  for name, shape in shapes.items():
    if name in files and files[name].shape() != shape:
      problems.append(
        f"weight {name} has shape {files[name].shape()}; config.json makes it {shape}"
      )
  if problems:
    shown = "\n  ".join(problems[:20])
    more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
    raise ValueError(
      f"{directory}: the weights do not fit config.json:\n  {shown}{more}"
    )


def _read(
  config: Config, entries: list[hf_weights.WeightEntry], files: dict[str, _Stored]
) -> Params:
  """Reads tensors into stacked arrays one at a time, without a second copy."""
  params = jax.tree.map(
    lambda weight: np.empty(weight.shape, np.float32), transformer.weights(config)
  )
  for entry in entries:
    for path, part in zip(
      entry.paths, entry.split(files[entry.name].read()), strict=True
    ):
      _leaf(params, path)[entry.index] = part
  return params


def _read_on(
  mesh: Mesh,
  config: Config,
  entries: list[hf_weights.WeightEntry],
  files: dict[str, _Stored],
) -> Params:
  """Reads parameters onto the devices, one after the other."""
  tree = transformer.weights(config)
  axes = jax.tree.map(lambda weight: weight.axes, tree)
  shardings = rules.param_shardings(mesh, axes, tree)

  def place(path: tuple, weight: transformer.Weight) -> jax.Array:
    keys = tuple(key.key for key in path)
    sharding: Any = _leaf(shardings, keys)
    where = {
      device: tuple(
        slice(*part.indices(size)[:2])
        for part, size in zip(index, weight.shape, strict=True)
      )
      for device, index in sharding.addressable_devices_indices_map(
        weight.shape
      ).items()
    }
    # Copies of one part share its memory.
    parts = {
      _bounds(index): np.empty([s.stop - s.start for s in index], np.float32)
      for index in where.values()
    }
    for entry in entries:
      if keys not in entry.paths:
        continue
      pieces = entry.split(files[entry.name].read())
      _cut(pieces[entry.paths.index(keys)], entry.index, parts)
    arrays = [
      jax.device_put(parts[_bounds(index)], device) for device, index in where.items()
    ]
    return jax.make_array_from_single_device_arrays(weight.shape, sharding, arrays)

  return jax.tree_util.tree_map_with_path(place, tree)


def _bounds(index: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
  return tuple((part.start, part.stop) for part in index)


def _cut(piece: np.ndarray, index: Any, parts: Mapping[tuple, np.ndarray]) -> None:
  """Copies what the parts of a stacked array hold of one of its pieces.

  Args:
    piece: one layer, or one expert of it, or the whole array.
    index: of it in the stacked array (`WeightEntry.index`).
    parts: bounds along each axis -> the array between them.
  """
  stacked = () if index is ... else (index if isinstance(index, tuple) else (index,))
  for bounds, part in parts.items():
    lead = bounds[: len(stacked)]
    inside = zip(stacked, lead, strict=True)
    if all(first <= at < last for at, (first, last) in inside):
      at = tuple(n - first for n, (first, _) in zip(stacked, lead, strict=True))
      part[at] = piece[tuple(slice(*pair) for pair in bounds[len(stacked) :])]


def _leaf(params: Params, path: tuple[str, ...]) -> np.ndarray:
  for key in path:
    params = params[key]
  return params


def _load_tokenizer(directory: Path, config: Config) -> Any:
  if not (directory / _TOKENIZER).exists():
    return None
  tokenizer = read_tokenizer(directory)
  if len(tokenizer) > config.vocab:
    raise ValueError(
      f"{directory}: the tokenizer has {len(tokenizer)} tokens, the embedding "
      f"{config.vocab} rows; use the model's own tokenizer"
    )
  return tokenizer


def _stop_ids(directory: Path, config: Config, tokenizer: Any) -> tuple[int, ...]:
  """Tokens that end a completion beside the tokenizer's EOS.

  Those of generation_config.json, and a list in config.json; a single id there may be
  the default of its family. Ids without a row of the embedding cannot be drawn.
  """
  found: set[int | None] = set()
  for name in ("config.json", _GENERATION):
    if (directory / name).exists():
      given = _json(directory / name).get("eos_token_id")
      if isinstance(given, list):
        found.update(given)
      elif name == _GENERATION:
        found.add(given)
  found -= {None, None if tokenizer is None else tokenizer.eos_token_id}
  return tuple(sorted(x for x in found if x is not None and 0 <= x < config.vocab))


def save(
  directory: str | Path,
  config: Config,
  params: Params,
  *,
  tokenizer: Any = None,
  dtype: str = "float32",
  shard_bytes: int = _SHARD_BYTES,
) -> Path:
  """Saves a directory that transformers 4 and 5 load.

  Args:
    directory: created if it does not exist; must contain no weights.
    config: of the decoder.
    params: `{"lm": ..., "value": ...}`; a scalar head is written to
      value_head.safetensors.
    tokenizer: a transformers tokenizer with its chat template, or None.
    dtype: of the saved weights, "float32" or "bfloat16".
    shard_bytes: maximum size of a file.

  Returns:
    The directory.

  Raises:
    ValueError: no family supports the config; parameters of other shapes; an unknown
      dtype; the directory contains weights already.
  """
  directory = Path(directory)
  if dtype not in ("float32", "bfloat16"):
    raise ValueError(f"dtype is {dtype!r}; allowed: 'float32', 'bfloat16'")
  family = hf_config.find_family(config)
  _check_params(config, params["lm"])
  _make(directory)
  _write_config(directory, family.write(config), tokenizer, dtype)
  _write_stop_ids(directory, config, tokenizer)
  shapes = {entry.name: entry.shape for entry in family.entries(config)}
  tensors = _tensors(family, config, params["lm"])
  _write_weights(directory, shapes, tensors, dtype, shard_bytes)
  _save_head(directory, params)
  if tokenizer is not None:
    _write_tokenizer(directory, tokenizer)
  return directory


def save_adapter(
  directory: str | Path,
  config: Config,
  adapter: Adapter,
  *,
  params: Params,
  base: Params,
  base_name: str | None,
  tokenizer: Any = None,
) -> Path:
  """Saves an adapter that PEFT and `load` read, beside the tokenizer.

  Args:
    directory: created if it does not exist; must contain no adapter.
    config: of the decoder.
    adapter: its configuration.
    params: `{"lm": the adapter's, "value": ...}`, the latter where there is a head.
    base: the decoder's parameters, to which the adapter belongs.
    base_name: see `peft.save`.
    tokenizer: see `save`.

  Returns:
    The directory.

  Raises:
    ValueError: as `peft.save`.
  """
  directory = Path(directory)
  wrapper = ""
  if base_name is not None:
    found = weights_source.directory(base_name)
    if (found / "config.json").exists():
      wrapper = _family(found).wrapper
  peft.save(
    directory,
    config,
    adapter,
    params=params["lm"],
    base=base,
    base_name=base_name,
    wrapper=wrapper,
  )
  _save_head(directory, params)
  if tokenizer is not None:
    _write_tokenizer(directory, tokenizer)
  return directory


def _save_head(directory: Path, params: Params) -> None:
  if "value" in params:
    head = {name: np.asarray(leaf) for name, leaf in params["value"].items()}
    hf_weights.write_file(directory / _VALUE_HEAD, head)


def save_classifier(
  directory: str | Path,
  config: Config,
  params: Params,
  *,
  tokenizer: Any,
  shard_bytes: int = _SHARD_BYTES,
) -> Path:
  """Saves a `*ForSequenceClassification` of one label, in float32.

  transformers reads its score at the last token that is not padding.

  Args:
    directory: created if it does not exist; must contain no weights.
    config: of the decoder.
    params: `{"lm": ..., "value": ...}`; a head over the vocabulary is left out.
    tokenizer: of transformers; its token for padding ends no text.
    shard_bytes: maximum size of a file.

  Returns:
    The directory.

  Raises:
    ValueError: a family without such a class; a head with a bias, which the class has
      not; padding that is not a token of its own; or as `save`.
  """
  directory = Path(directory)
  lm, head = dict(params["lm"]), params["value"]
  lm.pop("head", None)
  config = dataclasses.replace(config, tied=True)
  family = hf_config.find_family(config)
  hf = family.write(config)
  if not family.classifies:
    raise ValueError(
      f"{hf.model_type}: transformers has no *{_CLASSIFIER} of this family; the run's "
      "policy/ is read by reward_model.scorer"
    )
  if float(head["bias"]) != 0:
    raise ValueError(
      f"the head has the bias {float(head['bias'])}, {_SCORE} has none; keep it apart"
    )
  if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
    raise ValueError(
      f"the tokenizer's pad_token is {tokenizer.pad_token!r} and its eos_token "
      f"{tokenizer.eos_token!r}: transformers would not read the score at the last "
      "token; set pad_token to a token that ends no text"
    )
  _check_params(config, lm)
  _make(directory)
  hf.architectures = [type(hf).__name__.replace("Config", _CLASSIFIER)]
  hf.num_labels = 1
  _write_config(directory, hf, tokenizer, "float32")
  kernel_D = np.asarray(jax.device_get(head["kernel_D"]), np.float32)
  score = _score(config)
  tensors = itertools.chain(
    _tensors(family, config, lm), [(_SCORE, score.join(kernel_D))]
  )
  shapes = {entry.name: entry.shape for entry in family.entries(config)}
  shapes |= {_SCORE: score.shape}
  _write_weights(directory, shapes, tensors, "float32", shard_bytes)
  _write_tokenizer(directory, tokenizer)
  return directory


def _make(directory: Path) -> None:
  if any(directory.glob("*.safetensors")):
    raise ValueError(f"{directory} already contains weights; name a new directory")
  directory.mkdir(parents=True, exist_ok=True)


def _check_params(config: Config, lm: Params) -> None:
  expected = {
    jax.tree_util.keystr(path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(transformer.weights(config))
  }
  given = {
    jax.tree_util.keystr(path): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(lm)
  }
  for name in sorted(expected.keys() | given.keys()):
    if given.get(name) != expected.get(name):
      raise ValueError(
        f"params{name} has shape {given.get(name)}; the config makes it "
        f"{expected.get(name)} (None: no such parameter)"
      )


def _write_config(directory: Path, hf: Any, tokenizer: Any, dtype: str) -> None:
  content = hf.to_dict()
  if tokenizer is not None:
    content["bos_token_id"] = tokenizer.bos_token_id
    content["eos_token_id"] = tokenizer.eos_token_id
    content["pad_token_id"] = tokenizer.pad_token_id
  content["dtype"] = dtype
  content["transformers_version"] = transformers.__version__
  # transformers 4 reads these fields and would silently use its defaults.
  content["torch_dtype"] = dtype
  count = content.get("num_local_experts") or content.get("num_experts")
  if count is not None:  # its name depends on the version, by family
    content["num_local_experts"] = content["num_experts"] = count
  rope = content.get("rope_parameters")
  if rope is not None:
    if "sliding_attention" in rope:  # of layers with a window, and of the others
      content["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
      rope = rope["full_attention"]
    content["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
      content["partial_rotary_factor"] = rope["partial_rotary_factor"]
      content["rotary_pct"] = rope["partial_rotary_factor"]
      content["rotary_emb_base"] = rope["rope_theta"]
    scaled = rope["rope_type"] != "default"
    content["rope_scaling"] = (
      {key: value for key, value in rope.items() if key != "rope_theta"}
      if scaled
      else None
    )
  _dump(directory / "config.json", content)


def _write_stop_ids(directory: Path, config: Config, tokenizer: Any) -> None:
  """Writes all tokens that end a completion, where there are more than one EOS."""
  if not config.stop_ids:
    return
  eos = None if tokenizer is None else tokenizer.eos_token_id
  ids = list(dict.fromkeys(x for x in (eos, *config.stop_ids) if x is not None))
  content = _json(directory / "config.json")
  _dump(directory / "config.json", content | {"eos_token_id": ids})
  special = {name: content.get(name) for name in ("bos_token_id", "pad_token_id")}
  _dump(
    directory / _GENERATION,
    {name: value for name, value in special.items() if value is not None}
    | {"eos_token_id": ids, "transformers_version": transformers.__version__},
  )


def _dump(path: Path, content: dict[str, Any]) -> None:
  text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
  path.write_text(text + "\n", encoding="utf-8")


def _tensors(
  family: hf_families.ModelFamily, config: Config, lm: Params
) -> Iterator[tuple[str, np.ndarray]]:
  """The decoder's tensors by name, one at a time.

  Of a large model a tensor is fetched when its turn comes, so that the host never holds
  the whole tree.
  """
  if sum(x.nbytes for x in jax.tree.leaves(lm)) <= _FETCHED_AT_ONCE:
    lm = jax.tree.map(np.asarray, jax.device_get(lm))
  for entry in family.entries(config):
    yield (
      entry.name,
      entry.join(*(np.asarray(_leaf(lm, path)[entry.index]) for path in entry.paths)),
    )


def _write_weights(
  directory: Path,
  shapes: Mapping[str, tuple[int, ...]],
  tensors: Iterable[tuple[str, np.ndarray]],
  dtype: str,
  shard_bytes: int,
) -> None:
  """Writes tensors to files of a size, and the index of several.

  Args:
    directory: for the files.
    shapes: of the tensors by name, in their order, which say what goes into which file:
      only the tensors of one file are in memory.
    tensors: by name.
    dtype: of the files.
    shard_bytes: maximum size of a file.
  """
  item = jnp.dtype(dtype).itemsize
  sizes = {name: math.prod(shape) * item for name, shape in shapes.items()}
  shards: list[list[str]] = [[]]
  size = 0
  for name, own in sizes.items():
    if shards[-1] and size + own > shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += own
  names = [_SINGLE]
  if len(shards) > 1:
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    file_of = {n: file for file, s in zip(names, shards, strict=True) for n in s}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": file_of}
    _dump(directory / _INDEX, index)
  rest = iter(tensors)
  for file, shard in zip(names, shards, strict=True):
    content = {
      name: np.ascontiguousarray(tensor.astype(jnp.dtype(dtype)))
      for name, tensor in itertools.islice(rest, len(shard))
    }
    hf_weights.write_file(directory / file, content)


def _write_tokenizer(directory: Path, tokenizer: Any) -> None:
  tokenizer.save_pretrained(directory)
  # In the format of transformers 4, which 5 reads too.
  content = _json(directory / _TOKENIZER)
  content["tokenizer_class"] = "PreTrainedTokenizerFast"
  # How it was loaded, which must not change what is exported.
  for name in ("backend", "is_local", "local_files_only"):
    content.pop(name, None)
  if isinstance(content.get("extra_special_tokens"), list):
    content["additional_special_tokens"] = content.pop("extra_special_tokens")
  _dump(directory / _TOKENIZER, content)
