"""Loads the reference, and caches its statistics per token.

With adapters, the reference and the policy share one copy of the base's weights. The
statistics are computed once and stored on disk, concatenated in the order of the data
set, one entry per completion token, and indexed by example, so that one file serves
every packing. A cache of other data or another reference than the run's is refused; the
message lists the differences.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment, Pretrained, Scratch
from xpo_jax.data import audit, sealed_files
from xpo_jax.data.pack import Batch, Batches
from xpo_jax.data.token_store import TokenStore
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback.teacher import Teacher
from xpo_jax.models import hf_checkpoint, lora, peft, transformer, weights_source
from xpo_jax.models.score import score
from xpo_jax.models.transformer import Model
from xpo_jax.ops.tpu import chip
from xpo_jax.sharding import distributed
from xpo_jax.sharding import mesh as meshes
from xpo_jax.train import loading, state
from xpo_jax.types import Objective, Params, TokenStat

KEY = "key.json"
ROLE = "ref"


class Reference(NamedTuple):
  """The decoder of a reference.

  Attributes:
    lm: its weights; None: the base of the run's adapters, of which there is one copy.
    adapter: on that base, or None.
  """

  lm: Params | None
  adapter: loading.OnBase | None


class Cache(NamedTuple):
  """Statistics of every completion token of a data set.

  Attributes:
    values: field -> float32 [tokens with loss, ...], in the order of the store.
    start_NK: index of the first token of completion k of example n.
  """

  values: Mapping[str, np.ndarray]
  start_NK: np.ndarray


def load(experiment: Experiment, begin: loading.LoadedStart) -> Reference | None:
  """Loads the reference's decoder; None where it is the weights `begin.params`.

  With adapters, a reference that is their base, or an adapter on it, has no weights of
  its own: the base is not read again where it has the same name, and not kept twice
  where it has the same weights.

  Raises:
    ValueError: another architecture or tokenizer than the policy's.
  """
  source = experiment.reference
  if source is None:
    return None if begin.adapter is None else Reference(None, begin.adapter)
  adapted = experiment.adapter is not None
  if adapted and hf_checkpoint.is_adapter(source.directory):
    on_base = _on_base(experiment, begin)
    if on_base is not None:
      return on_base
  if adapted and _same_place(source.directory, begin.name):
    return Reference(None, None)
  other = loading.pretrained(source)
  _check_alike(source, other, begin)
  lm = other.params["lm"]
  if adapted:
    stored, model = experiment.precision.base, transformer.model(begin.config)
    rounded = state.base_in_memory(stored, model, lm)
    if _weights(rounded) == _weights(begin.params["lm"]):
      return Reference(None, None)
  return Reference(lm, None)


def place(
  mesh: jax.sharding.Mesh | None,
  model: Model,
  frozen: Mapping[str, Params],
  reference: Reference,
) -> tuple[Params, Model]:
  """Places a reference on the mesh.

  Args:
    mesh: None: one device.
    model: of the policy, without adapters.
    frozen: `{"base": ...}` where the run has adapters.
    reference: see `Reference`.

  Returns:
    `{"lm": ...}`, and its model.
  """
  if reference.lm is not None:
    return {"lm": state.frozen(mesh, model, reference.lm)}, model
  base = frozen[state.BASE]["lm"]
  if reference.adapter is None:
    return {"lm": base}, model
  lm, attached = state.frozen_adapter(mesh, model, base, *reference.adapter)
  return {"lm": lm}, attached


def merged(begin: loading.LoadedStart, reference: Reference) -> Reference:
  """A reference with its adapter merged into the base."""
  if reference.adapter is None:
    return reference
  form, params = reference.adapter
  return Reference(lora.merged(begin.params["lm"], params, form), None)


def _on_base(experiment: Experiment, begin: loading.LoadedStart) -> Reference | None:
  """A reference that is an adapter on the run's base; None where it has another."""
  source = experiment.reference
  directory = weights_source.directory(source.directory)
  if not _same_place(peft.base_of(directory), begin.name):
    return None
  if peft.is_of_nf4(directory) and experiment.precision.base != "nf4":
    return None
  stored = begin.params["lm"]
  if experiment.precision.base != "float32":  # the adapter's digest may be of float32
    stored = hf_checkpoint.load(begin.name).params["lm"]
  form, params = peft.load(directory, begin.config, stored)
  tokenizer = hf_checkpoint.read_tokenizer(source.directory)
  _check_alike(source, begin._replace(tokenizer=tokenizer), begin)
  return Reference(None, loading.OnBase(form, params))


def _same_place(name: str, other: str | None) -> bool:
  """Whether two names of weights stand for one directory."""
  if other is None:
    return False
  places = [weights_source.directory(each).resolve() for each in (name, other)]
  return places[0] == places[1]


def load_named(experiment: Experiment, begin: loading.LoadedStart) -> dict[str, Params]:
  """Loads the decoders of `Experiment.references`, by role.

  Raises:
    ValueError: as `load`.
  """
  named = {}
  for one in experiment.references:
    other = loading.pretrained(one.weights)
    field = f"Experiment.references ({one.role})"
    _check_alike(one.weights, other, begin, field)
    named[one.role] = other.params["lm"]
  return named


def _check_alike(
  source: Pretrained,
  other: loading.LoadedStart,
  begin: loading.LoadedStart,
  field: str = "Experiment.reference",
) -> None:
  alike = ("compute_dtype", "remat", "stop_ids", "router_loss", "router_loss_coef")
  same = {name: vars(begin.config)[name] for name in alike}
  if dataclasses.replace(other.config, **same) != begin.config:
    raise ValueError(
      f"{field} is {source.directory!r}, of another "
      "architecture than the start's; give one of the same"
    )
  if audit.tokens_digest(other.tokenizer) != audit.tokens_digest(begin.tokenizer):
    raise ValueError(
      f"{field} is {source.directory!r}, of another "
      "tokenizer than the start's; its log-probs would be of other tokens"
    )


def start_digests(
  experiment: Experiment,
  begin: loading.LoadedStart,
  reference: Reference | None,
  teacher: Teacher | None = None,
  named: Mapping[str, Params] = {},
) -> dict[str, str]:
  """Computes the digests of weights that every resume reads again: the base of
  adapters, a start that is a directory, a separate reference, a teacher.

  Args:
    experiment: the run.
    begin: the start.
    reference: of the reference, or None where it is the start's decoder.
    teacher: the teacher, or None.
    named: further references, by role.
  """
  lm, digests = begin.params["lm"], {}
  if experiment.adapter is not None:
    digests["base_sha256"] = _weights(lm)
  elif not isinstance(experiment.start, Scratch):  # else made from the seed
    digests["start_sha256"] = _weights(lm)
  if begin.adapter is not None:
    digests["start_sha256"] = _weights(begin.adapter.params)
  if experiment.reference is not None:
    own = reference.lm
    if own is None and reference.adapter is not None:
      own = reference.adapter.params
    digests["reference_sha256"] = (
      digests["base_sha256"] if own is None else _weights(own)
    )
  if teacher is not None:
    digests["teacher_sha256"] = _weights(teacher.params["lm"])
  for role, lm_of_role in named.items():
    digests[f"{role}_sha256"] = _weights(lm_of_role)
  return digests


def _weights(lm: Params) -> str:
  return distributed.digest(lm).tobytes().hex()


def cacheable(objective: Objective, role: str = ROLE) -> tuple[TokenStat, ...]:
  """Selects the statistics to cache: all that read a frozen role, the reference, if
  none of them reads another role too; else none, because every step must then run it.
  """
  reading = [s for s in objective.stats if role in s.decoders]
  if any(s.decoders != {role} for s in reading):
    return ()
  return tuple(sorted(reading, key=lambda stat: stat.field))


def reads_live(objective: Objective, role: str = ROLE) -> bool:
  """Whether the objective reads a frozen role's parameters in the step."""
  reading = any(role in stat.decoders for stat in objective.stats)
  return reading and not cacheable(objective, role)


def key(
  examples: Sequence[Example],
  tokenizer: Any,
  template: Any,
  limits: Any,
  params: Params,
  dtype: str,
  stats: Sequence[TokenStat],
) -> dict[str, Any]:
  """Computes digests of everything that the cached values depend on, by name."""
  return {
    "data": audit.digest(examples),
    "tokenizer": audit.tokenizer_digest(tokenizer),
    "template": yaml_file.to_dict(template),
    "truncation": yaml_file.to_dict(limits),
    "reference": distributed.digest(params).tobytes().hex(),
    "dtype": dtype,
    "statistics": [stat.field for stat in stats],
  }


@functools.lru_cache
def scorer(
  model: Model, stats: tuple[TokenStat, ...], mesh: jax.sharding.Mesh | None = None
) -> Callable[[Params, Batch], dict[str, jax.Array]]:
  """Makes the `recorder` of the reference alone, `(params, batch) -> {field: ...}`.

  Equal arguments return the same function, so that several data sets compile once.
  """
  run = recorder({ROLE: model}, stats, mesh)
  return lambda params, batch: run({ROLE: params}, batch)


def recorder(
  models: Mapping[str, Model],
  stats: tuple[TokenStat, ...],
  mesh: jax.sharding.Mesh | None,
) -> Callable[[Mapping[str, Params], Batch], dict[str, jax.Array]]:
  """Makes the jitted `(role -> params, batch) -> {field: [M, B, K, T]}`."""

  def one(params: Mapping[str, Params], microbatch: Batch) -> dict[str, jax.Array]:
    record = score(models, params, stats, microbatch, mesh=mesh)
    fields = vars(record) | dict(record.extra)
    return {stat.field: fields[stat.field] for stat in stats}

  options = chip.compiler_options(meshes.device_kind(mesh))
  return jax.jit(
    lambda params, batch: jax.lax.map(lambda b: one(params, b), batch),
    compiler_options=options,
  )


def compute(
  batches: Batches,
  run: Callable[[Params, Batch], dict[str, jax.Array]],
  params: Params,
  place: Callable[[Batch], Batch] = lambda batch: batch,
  *,
  directory: Path | None = None,
) -> Cache:
  """Scores every example once under the reference.

  Args:
    batches: one pass over the data set (`pack.eval_batches`).
    run: see `scorer`.
    params: `{"lm": the reference's parameters}`.
    place: puts a batch on the mesh.
    directory: for the values, which are a file there without a name until the process
      ends; None: they are kept in memory.
  """
  data = batches.store
  cache = Cache({}, _starts(data))
  for step in range(len(batches)):
    batch = batches[step]
    at = _positions(cache, batch)
    mask = batch.mask_MBKT > 0
    for field, x_MBKT in distributed.to_host(run(params, place(batch))).items():
      if field not in cache.values:
        shape = (int(data.loss.sum()), *x_MBKT.shape[4:])
        cache.values[field] = _zeros(shape, x_MBKT.dtype, directory)
      cache.values[field][at[mask]] = x_MBKT[mask]
  return cache


def _zeros(shape: tuple[int, ...], dtype: Any, directory: Path | None) -> np.ndarray:
  if directory is None:
    return np.zeros(shape, dtype)
  with tempfile.TemporaryFile(dir=directory) as file:
    return np.memmap(file, dtype, "w+", shape=shape)  # of zeros


def cache(values: Mapping[str, np.ndarray], data: TokenStore) -> Cache:
  """Makes a cache of given values, in the order of the data set's completion tokens."""
  return Cache(values, _starts(data))


def fill(cache: Cache | None, batch: Batch) -> Batch:
  """Adds the cached statistics to a batch as `ref`; padding is 0."""
  if cache is None:
    return batch
  at = _positions(cache, batch)
  mask = batch.mask_MBKT > 0
  ref = {}
  for field, values in cache.values.items():
    tail = (1,) * (values.ndim - 1)
    ref[field] = np.where(mask.reshape(*mask.shape, *tail), values[at], 0)
  return batch.replace(ref=ref)


def write(directory: Path, cache: Cache, wanted: Mapping[str, Any]) -> None:
  """Writes a cache and its key, whole or not at all.

  Raises:
    ValueError: the directory holds something else.
  """

  def save(temporary: Path) -> None:
    temporary.mkdir()
    for field, values in cache.values.items():
      np.save(temporary / f"{field}.npy", values)
    sealed_files.write_json(temporary / KEY, wanted)

  # Without a key: an older version was killed here.
  if directory.exists() and not (directory / KEY).exists():
    own = {f"{field}.npy" for field in cache.values}
    if other := sorted({path.name for path in directory.iterdir()} - own):
      raise ValueError(
        f"{directory} holds {other[0]} and no reference cache; name another in "
        "Data.reference_cache"
      )
    sealed_files.remove_directory(directory)
  sealed_files.write_directory(directory, save)


def read(directory: Path, data: TokenStore, wanted: Mapping[str, Any]) -> Cache | None:
  """Reads the cache in a directory; None where there is none yet.

  Args:
    directory: see `write`.
    data: the run's data set.
    wanted: the run's key.

  Raises:
    ValueError: the cache has another key; shows the differences. A file is damaged.
  """
  if not (directory / KEY).exists():
    return None
  sealed_files.check_directory(directory, "delete the directory: it is computed again")
  stored = sealed_files.read_json(directory / KEY)
  lines = yaml_file.difference(stored, json.loads(json.dumps(wanted)))
  if lines:
    listed = "\n  ".join(lines)
    raise ValueError(
      f"stale reference cache in {directory}: it was made with another\n  {listed}\n"
      "delete it, or name another directory in Data.reference_cache"
    )
  values = {
    field: np.load(directory / f"{field}.npy", mmap_mode="r")
    for field in wanted["statistics"]
  }
  return Cache(values, _starts(data))


def _starts(data: TokenStore) -> np.ndarray:
  """For example n and column k, the number of tokens with loss before it."""
  pieces = data.piece_start[:-1]
  responses = np.add.reduceat(data.loss, pieces, dtype=np.int64)
  before = np.concatenate([[0], responses.cumsum()])
  counts = np.diff(data.group_start) - 1
  start_NK = np.zeros((len(counts), int(counts.max())), np.int64)
  within = np.arange(start_NK.shape[1]) < counts[:, None]
  piece_NK = data.group_start[:-1, None] + 1 + np.arange(start_NK.shape[1])
  start_NK[within] = before[piece_NK[within]]
  return start_NK


def _positions(cache: Cache, batch: Batch) -> np.ndarray:
  """[M, B, K, T] positions in `values`; 0 on padding."""
  K, T = batch.mask_MBKT.shape[-2:]
  # Narrower than K where no group of the data has K completions.
  start_NK = np.pad(cache.start_NK, ((0, 0), (0, K - cache.start_NK.shape[1])))
  at = start_NK[np.maximum(batch.row_MB, 0)][..., None] + np.arange(T)
  return np.where(batch.mask_MBKT > 0, at, 0)
