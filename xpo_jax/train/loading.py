"""Loads records, tokenizer, initial weights, and examples of a run."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import Experiment, Pretrained, Scratch
from xpo_jax.config.factories import Configured, factory
from xpo_jax.config.sampling import Sampling
from xpo_jax.data import (
  audit,
  record_file,
  record_stream,
  records,
  sealed_files,
  split,
  synthetic_reviews,
  token_cache,
  tokenise,
)
from xpo_jax.data.formats import hub, tables, tfds
from xpo_jax.data.record_stream import RecordStream
from xpo_jax.data.records import Record
from xpo_jax.data.sources import Loaded
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback import teacher as teachers
from xpo_jax.feedback.teacher import Teacher
from xpo_jax.models import hf_checkpoint, lora, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.lora import Adapter
from xpo_jax.sharding import distributed, place
from xpo_jax.train import state
from xpo_jax.types import Objective, Params

Datasets = Mapping[str, Sequence[Record]]
# Records that a function made, stored so that a resumed run has the same.
RECORDS, RECORDS_OF = "records.jsonl", "records_{}.jsonl"


class LoadedStart(NamedTuple):
  """Config, weights and tokenizer that the policy starts from.

  Attributes:
    config: of the decoder.
    params: `{"lm": ..., "value": ...}`, the latter where the checkpoint has a scalar
      head; "lm" is the base where training goes on with an adapter.
    tokenizer: of transformers.
    adapter: the adapter that training goes on with (`Adapter.continued`), or None.
    name: of the weights "lm" (`models.weights_source`); None of random ones.
  """

  config: Config
  params: Params
  tokenizer: Any
  adapter: "OnBase | None" = None
  name: str | None = None

  @property
  def policy(self) -> Params:
    """`{"lm": ..., "value": ...}` of the policy, an adapter attached to its base."""
    if self.adapter is None:
      return self.params
    form, params = self.adapter
    return self.params | {"lm": lora.attach(self.params["lm"], params, form)}


class OnBase(NamedTuple):
  """An adapter on the base of a run.

  Attributes:
    form: its configuration.
    params: its parameters.
  """

  form: Adapter
  params: Params


class Inputs(NamedTuple):
  """Inputs that checking an experiment has read, so that they are read once.

  Attributes:
    loaded: records of the run's data or prompts; None where they do not exist yet.
    judge: of a run on rollouts; None where it does not exist yet.
  """

  loaded: Loaded | None = None
  judge: Any = None


class PromptSet(NamedTuple):
  """Prompts to sample from.

  Attributes:
    uids: uids of their records.
    texts: for the judge; a `records.Conversation` of messages.
    ids: token ids for the model, int32.
    width: tokens of the longest, to which sampling pads.
  """

  uids: tuple[str, ...]
  texts: tuple[str, ...]
  ids: tuple[np.ndarray, ...]
  width: int


class HeldOut(NamedTuple):
  """Held-out data of a run.

  Attributes:
    prompts: token ids of the different prompts, in the data's order.
    texts: the prompts as texts; empty where they are decoded from the ids.
    examples: held-out examples; empty where there are only prompts.
  """

  prompts: list[Any]
  texts: tuple[str, ...]
  examples: list[Example]


def load(
  data: Data | Prompts | Evaluation,
  like: Data | Prompts,
  datasets: Datasets,
  made: Path | None = None,
  field: str = "path",
) -> Loaded:
  """Reads the records of a source, by its path.

  Args:
    data: config of the source.
    like: config of how rows are read.
    datasets: records by the name given as a path.
    made: file of records that a function makes: written, or read where it exists.
    field: of the config that names the path, for messages.

  Raises:
    ValueError: a path of no known kind, or what `data.sources` raises.
  """
  path = data.path
  if isinstance(path, Configured):
    loaded = _made(path, made)
  elif path in datasets:
    loaded = _from_records(path, datasets[path])
  elif path.startswith("synthetic:"):
    loaded = _synthetic(path)
  elif path.startswith("hub:"):
    loaded = hub.read(path, data.split, like.reading)
  elif path.endswith(tables.SUFFIXES):
    if not Path(path).exists():
      raise ValueError(f"{type(data).__name__}.{field} is {path!r}: no such file")
    loaded = tables.read(path, data.split, like.reading)
  elif tables.is_saved(Path(path)):
    loaded = tables.read(path, data.split, like.reading)
  elif Path(path).is_dir():
    loaded = tfds.read_directory(path, data.split, like.reading)
  else:
    named = f", or one of the records handed over: {', '.join(datasets)}"
    raise ValueError(
      f"{type(data).__name__}.{field} is {path!r}; it must be a file "
      f"({', '.join(tables.SUFFIXES)}), a directory of TFDS or of save_to_disk, "
      f"hub:NAME, or synthetic:NUMBER{named if datasets else ''}"
    )
  if data.portion is not None:
    rows = _portion(loaded.records, data.portion, like.seed)
    loaded = dataclasses.replace(loaded, records=rows)
  if data.limit is not None:
    loaded = dataclasses.replace(loaded, records=_first(loaded.records, data.limit))
  if isinstance(data, Data):
    for other, weight in data.others:
      one = dataclasses.replace(data, path=other, also=())
      loaded = _joined(
        loaded, load(one, like, datasets, field="also"), weight, like.seed
      )
  return loaded


def _portion(rows: Sequence[Record], name: str, seed: int) -> Sequence[Record]:
  """The records of a portion of the prompts."""
  if not isinstance(rows, RecordStream):
    return tuple(split.by_prompt(rows, split.PORTIONS, seed)[name])

  def portion_of(row: Record) -> str:
    return split.name_of(split.prompt_text(row), split.PORTIONS, seed)

  counts = Counter(map(portion_of, rows))
  split.check_members({n: counts[n] for n in split.PORTIONS}, split.PORTIONS)
  return rows.where(lambda row: portion_of(row) == name, counts[name])


def _first(rows: Sequence[Record], count: int) -> Sequence[Record]:
  return rows.first(count) if isinstance(rows, RecordStream) else rows[:count]


def _joined(first: Loaded, second: Loaded, weight: float, seed: int) -> Loaded:
  """Two sources as one; the second's records count `weight` times each."""
  whole, rest = divmod(weight, 1)
  streamed = any(isinstance(x.records, RecordStream) for x in (first, second))
  parts = [first.records, *[second.records] * int(whole)]
  parts.append(
    _some_of(second.records, lambda row: split.uniform(row.uid, seed) < rest)
  )
  unused = Counter(first.unused) + Counter(second.unused)
  sha = hashlib.sha256(f"{first.sha256} {weight} {second.sha256}".encode())
  return Loaded(
    f"{first.name} + {weight:g} x {second.name}",
    record_stream.concatenated(parts) if streamed else tuple(itertools.chain(*parts)),
    first.bad + second.bad,
    sha.hexdigest(),
    dict(sorted(unused.items())),
  )


def _some_of(
  rows: Sequence[Record], chosen: Callable[[Record], bool]
) -> Sequence[Record]:
  if isinstance(rows, RecordStream):
    return rows.where(chosen, sum(map(chosen, rows)))
  return [row for row in rows if chosen(row)]


def load_checked(data: Data | Prompts, datasets: Datasets) -> Loaded:
  """Reads the records of a source, and refuses bad rows where they stop the run.

  Raises:
    BadRecords: bad rows, and `bad_rows` is "stop".
    ValueError: see `load`.
  """
  loaded = load(data, data, datasets)
  if loaded.bad and data.bad_rows == "stop":
    raise records.BadRecords(loaded.bad)
  return loaded


def is_there(data: Data | Prompts | Evaluation) -> bool:
  """Whether records exist before the run's stages are trained."""
  return not isinstance(data.path, Configured)


def start(
  experiment: Experiment,
  run_dir: Path,
  loaded: Loaded,
  mesh: jax.sharding.Mesh | None = None,
) -> LoadedStart:
  """Loads the tokenizer and weights that an experiment's policy starts from.

  Args:
    experiment: the run, its stages replaced by directories.
    run_dir: directory for a tokenizer trained here, so that a resumed run has the
      same.
    loaded: records to train a tokenizer on.
    mesh: on which weights are drawn or read, each shard where it is used; None: one
      device draws them, the host reads them.

  Raises:
    ValueError: a directory without a tokenizer; `router_loss` without a router; a base
      that its adapters are not defined on.
  """
  begin = _start(experiment, run_dir, loaded, mesh)
  if experiment.adapter is not None:
    stored, lm = experiment.precision.base, begin.params["lm"]
    lm = state.base_in_memory(stored, transformer.model(begin.config), lm)
    begin = begin._replace(params=begin.params | {"lm": lm})
  lora.check_base(begin.config, experiment.adapter, begin.params["lm"])
  template = experiment.data.source.template.chat_template
  if template is not None:  # it is exported with the tokenizer
    begin.tokenizer.chat_template = template
  coefficient = experiment.router_loss
  if coefficient is None:
    return begin
  if begin.config.experts is None:
    raise ValueError(
      f"Experiment.router_loss is {coefficient}, but the start is no mixture of "
      "experts and has no router; leave it out"
    )
  if coefficient:
    changes = {"router_loss": True, "router_loss_coef": coefficient}
  else:
    changes = {"router_loss": False}
  return begin._replace(config=dataclasses.replace(begin.config, **changes))


def _start(
  experiment: Experiment,
  run_dir: Path,
  loaded: Loaded,
  mesh: jax.sharding.Mesh | None,
) -> LoadedStart:
  begin, adapter = experiment.start, experiment.adapter
  if isinstance(begin, Scratch):
    tokenizer = _tokenizer(begin, run_dir, loaded)
    key = jax.random.fold_in(jax.random.key(experiment.seed), 0)
    model = transformer.model(begin.model)
    if mesh is None:
      lm = jax.jit(model.init)(key)
    else:
      lm = place.init_params(mesh, model.init, model.logical_axes(), key)
    return LoadedStart(begin.model, {"lm": lm}, tokenizer)
  if adapter is not None and adapter.continued:
    return _continued(begin, adapter)
  return pretrained(begin, mesh)


def _continued(begin: Pretrained, adapter: Adapter) -> LoadedStart:
  """Loads an adapter to go on with, and its base."""
  adapted = hf_checkpoint.load_adapted(
    begin.directory, begin.compute_dtype, begin.remat
  )
  config, params, tokenizer = adapted.base
  check_continued(adapter, adapted.adapter, config, begin.directory)
  _check_tokenizer(tokenizer, begin.directory)
  own = OnBase(adapted.adapter, adapted.params)
  return LoadedStart(config, params, tokenizer, own, adapted.name)


def check_continued(
  adapter: Adapter, own: Adapter | None, config: Config, start: str
) -> None:
  """Refuses to go on with an adapter of another form than the one configured.

  Args:
    adapter: `Experiment.adapter`.
    own: the start's adapter, or None where it has none.
    config: of the decoder.
    start: name of the start, for messages.

  Raises:
    ValueError: no adapter to go on with, or another rank, alpha, `rslora`, `dora` or
      layers.
  """
  if own is None:
    raise ValueError(
      f"Adapter.continued is True, and the start, {start}, is no adapter; start from "
      "one, or leave it out: a new adapter is trained then"
    )
  for name in ("rank", "alpha", "rslora", "dora"):
    if vars(adapter)[name] != vars(own)[name]:
      raise ValueError(
        f"Adapter.{name} is {vars(adapter)[name]} and Adapter.continued True: the "
        f"adapter of {start} has {vars(own)[name]}; give its own value"
      )
  mine, its = (lora.targets(config, one) for one in (adapter, own))
  if mine != its:
    raise ValueError(
      f"Adapter.targets is {adapter.targets!r} and Adapter.continued True: the adapter "
      f"of {start} is on {', '.join(its)}; give {'|'.join(its)!r}"
    )


def pretrained(begin: Pretrained, mesh: jax.sharding.Mesh | None = None) -> LoadedStart:
  """Loads config, weights and tokenizer of a Hugging Face directory.

  Args:
    begin: the directory.
    mesh: on which the weights are read, each shard where it is used; None: the host.

  Raises:
    ValueError: it has no tokenizer.
  """
  checkpoint = hf_checkpoint.load(
    begin.directory, begin.compute_dtype, begin.remat, mesh
  )
  _check_tokenizer(checkpoint.tokenizer, begin.directory)
  return LoadedStart(*checkpoint, name=begin.directory)


def _check_tokenizer(tokenizer: Any, directory: str) -> None:
  if tokenizer is None:
    raise ValueError(f"{directory} has no tokenizer; save one beside the weights")


def teacher(experiment: Experiment, begin: LoadedStart) -> Teacher | None:
  """Loads the teacher; None where the run has none.

  Raises:
    ValueError: another vocabulary or tokenizer than the policy's.
  """
  source = experiment.teacher
  if source is None:
    return None
  return teachers.load(
    source.directory,
    source.compute_dtype,
    source.remat,
    tokenizer=begin.tokenizer,
    like=begin.config,
  )


def prepare(
  experiment: Experiment,
  loaded: Loaded,
  tokenizer: Any,
  run_dir: Path,
  datasets: Datasets,
) -> tuple[list[Example], list[Example], dict[str, Any]]:
  """Prepares training examples, held-out examples, and the audit of both.

  Raises:
    BadRecords: bad records, where they stop the run.
  """
  data, evaluation = experiment.data, experiment.evaluation
  file = run_dir / "bad_rows.jsonl"
  prepared = _prepare(data, data, loaded, tokenizer, evaluation.shares, file)
  counts = prepared.audit.summary()
  examples = prepared.examples
  if evaluation.path is not None:
    other = load(evaluation, data, datasets)
    file = run_dir / "bad_rows_held_out.jsonl"
    prepared = _prepare(data, evaluation, other, tokenizer, {"held_out": 1.0}, file)
    examples = examples | prepared.examples
    counts = counts | {"held_out": prepared.audit.summary()}
  if held_out := examples.get("held_out"):
    counts["overlap"] = audit.overlap(
      *([example.prompt for example in rows] for rows in (examples["train"], held_out))
    )
  if data.conversion is not None:
    before = sum(map(len, examples.values()))
    examples = {name: _converted(data, rows) for name, rows in examples.items()}
    after = sum(map(len, examples.values()))
    counts["conversion"] = (
      f"{data.conversion.name}: {before:,} examples become {after:,}"
    )
  if data.transform is not None:
    transform = factory(data.transform)
    examples = {name: transform(rows, tokenizer) for name, rows in examples.items()}
  return examples["train"], examples.get("held_out", []), counts


def examples(
  data: Data, name: str, tokenizer: Any, run_dir: Path, datasets: Datasets
) -> tuple[list[Example], dict[str, Any]]:
  """Prepares all examples of a source, and their audit.

  Args:
    data: the source.
    name: of the source in the run, for file names.
    tokenizer: of transformers.
    run_dir: directory for the list of dropped bad rows.
    datasets: see `load`.

  Raises:
    BadRecords: bad records, where they stop the run.
  """
  loaded = load(data, data, datasets, run_dir / RECORDS_OF.format(name))
  file = run_dir / f"bad_rows_{name}.jsonl"
  prepared = _prepare(data, data, loaded, tokenizer, {"train": 1.0}, file)
  rows = prepared.examples["train"]
  if data.conversion is not None:
    rows = _converted(data, rows)
  if data.transform is not None:
    rows = factory(data.transform)(rows, tokenizer)
  return rows, prepared.audit.summary()


def _converted(data: Data, rows: list[Example]) -> list[Example]:
  converted = data.conversion.build()(rows)
  if rows and not converted:
    raise ValueError(
      f"Data.conversion {data.conversion.name} with {dict(data.conversion.arguments)} "
      f"makes nothing of {len(rows)} examples"
    )
  return converted


def _prepare(
  data: Data,
  source: Data | Evaluation,
  loaded: Loaded,
  tokenizer: Any,
  fractions: Mapping[str, float],
  file: Path,
) -> audit.Prepared:
  """Splits and tokenises the records of a source, read and tokenised as `data` says."""
  make = functools.partial(
    audit.prepare,
    loaded,
    tokenizer,
    fractions=fractions,
    template=data.template,
    limits=data.limits,
    seed=data.seed,
    bad_rows=data.bad_rows,
    bad_rows_file=file,
    directory=file.parent,
  )
  if data.token_cache is None:
    return make()
  chosen = ("split", "portion", "limit")  # of the source, by name and digest
  parts = {name: yaml_file.to_dict(vars(data)[name]) for name in ("template", "limits")}
  key = {
    "source": [loaded.name, loaded.sha256, *(vars(source)[name] for name in chosen)],
    "reading": yaml_file.to_dict(data.reading),
    "tokenizer": audit.tokenizer_digest(tokenizer),
    "fractions": dict(fractions),
    "seed": data.seed,
    "bad_rows": data.bad_rows,
  }
  return token_cache.prepared(Path(data.token_cache), key | parts, make, file)


def records_digest(rows: Sequence[Record]) -> str:
  """Computes the SHA-256 of records."""
  text = json.dumps([dataclasses.asdict(row) for row in rows], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def files_digest(path: Path) -> str:
  """Computes the SHA-256 of a file, or of a directory's files and their names."""
  files = (
    sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else []
  )
  sha = hashlib.sha256()
  for file in files or [path]:
    if not file.is_file():
      continue
    sha.update(file.name.encode())
    with file.open("rb") as content:
      sha.update(hashlib.file_digest(content, "sha256").digest())
  return sha.hexdigest()


def _from_records(name: str, rows: Sequence[Record]) -> Loaded:
  return Loaded(name, tuple(rows), (), records_digest(rows))


def _made(make: Configured, path: Path | None) -> Loaded:
  """Records that a function makes, or made before the run was resumed."""
  if path is None:
    return _from_records(make.name, _records_made(make))
  distributed.on_first(lambda: _write_made(make, path))
  return _from_records(make.name, record_file.read(path))


def _write_made(make: Configured, path: Path) -> None:
  if not path.exists():
    record_file.write(path, _records_made(make))


def _records_made(make: Configured) -> tuple[Record, ...]:
  rows = tuple(map(records.with_messages, make.build()))
  if not rows:
    raise ValueError(f"{make.name} made no records; there is nothing to train on")
  return rows


def _synthetic(path: str) -> Loaded:
  number = path.removeprefix("synthetic:")
  if not number.isdecimal() or not int(number):
    raise ValueError(
      f"path {path!r}: synthetic:NUMBER needs a number of reviews, at least 1"
    )
  texts = synthetic_reviews.generate(int(number), seed=0)
  rows = [
    records.Demonstration(f"review {i}", prompt, completion)
    for i, (prompt, completion) in enumerate(texts)
  ]
  return _from_records(path, rows)


def _tokenizer(start: Scratch, run_dir: Path, loaded: Loaded) -> Any:
  if start.tokenizer is not None:
    tokenizer = hf_checkpoint.read_tokenizer(start.tokenizer)
  else:
    directory = run_dir / "tokenizer"
    distributed.on_first(lambda: _train_tokenizer(start, directory, loaded))
    tokenizer = hf_checkpoint.read_tokenizer(directory)
  if len(tokenizer) > start.model.vocab:
    raise ValueError(
      f"Scratch.model.vocab is {start.model.vocab}, the tokenizer has "
      f"{len(tokenizer)} tokens; raise vocab"
    )
  return tokenizer


def _train_tokenizer(start: Scratch, directory: Path, loaded: Loaded) -> None:
  """Trains a tokenizer on the records, or checks the one that was trained."""
  if directory.exists():
    sealed_files.check_directory(directory, "delete the directory: it is trained again")
    return
  texts = (
    records.plain_text(row.prompt) + records.plain_text(completion)
    for row in loaded.records
    for completion in records.completions(row) or ("",)  # a bare prompt has none
  )
  tokenizer = synthetic_reviews.train_bpe(texts, start.model.vocab)
  sealed_files.write_directory(directory, tokenizer.save_pretrained)


def beyond_positions(config: Config, examples: Iterable[Example]) -> dict[str, int]:
  """Counts examples longer than the positions that the start was trained on.

  Raises:
    ValueError: there are no positions after the last (`Config.position_limit`).
  """
  beyond, longest, worst = 0, config.positions, ""
  for example in examples:
    length = len(example.prompt) + max(map(len, example.completions))
    beyond += length > config.positions
    if length > longest:
      longest, worst = length, example.uid
  if beyond and config.position_limit is not None:
    raise ValueError(
      f"{beyond} examples have more tokens than the {config.positions} "
      f"positions of the start: {worst} has {longest}; set "
      "Data.limits.prompt and Data.limits.completion, or drop them"
    )
  return {"beyond_positions": beyond}


def unread_margins(objective: Objective, loaded: Loaded) -> dict[str, int]:
  """Counts the pairs with a margin where the objective reads none, by column."""
  if "margin_BK" in objective.columns:
    return {}
  count = sum(
    isinstance(row, records.Pair) and row.margin is not None for row in loaded.records
  )
  return {"margin": count} if count else {}


def adapted(experiment: Experiment, config: Config) -> dict[str, list[str]]:
  """Names the layers that adapters are put on; none without adapters.

  Raises:
    ValueError: see `lora.targets`.
  """
  if experiment.adapter is None:
    return {}
  return {"adapted_layers": list(lora.targets(config, experiment.adapter))}


def check_room(config: Config, sampling: Sampling, longest: int) -> None:
  """Refuses sampling settings that a decoder of this config does not support.

  Args:
    config: of the policy.
    sampling: of the run.
    longest: tokens of the longest prompt.

  Raises:
    ValueError: more positions than there are; top_k above the vocabulary size.
  """
  if sampling.top_k is not None and sampling.top_k > config.vocab:
    raise ValueError(
      f"Sampling.top_k is {sampling.top_k}; allowed: 1 to {config.vocab} (the "
      "vocabulary), or None"
    )
  total = longest + sampling.max_completion_tokens
  if config.position_limit is not None and total > config.position_limit:
    raise ValueError(
      f"Sampling.max_completion_tokens is {sampling.max_completion_tokens}: after a "
      f"prompt of {longest} tokens that is {total}, and the start has "
      f"{config.positions} positions; lower it, or set Prompts.limits.prompt"
    )


def prompt_sets(
  experiment: Experiment,
  loaded: Loaded,
  tokenizer: Any,
  run_dir: Path,
  datasets: Datasets,
) -> tuple[PromptSet, PromptSet | None, dict[str, Any]]:
  """Prepares the training prompts, the held-out ones, and counts of both."""
  config, evaluation = experiment.data.prompts, experiment.evaluation
  every, tokenised = _prompt_set(config, loaded, tokenizer)
  bad = [*loaded.bad, *tokenised.bad]
  chosen, held_out = every, None
  if evaluation.share:
    sides = split.by_prompt(
      range(len(every.texts)),
      evaluation.shares,
      config.seed,
      prompt=lambda row: split.prompt_text(
        records.with_messages(records.Prompt("", every.texts[row]))
      ),
    )
    chosen, held_out = (_some(every, sides[name]) for name in ("train", "held_out"))
  elif evaluation.path is not None:
    unlimited = dataclasses.replace(evaluation, limit=None)
    other = load(unlimited, config, datasets)
    held_out, others = _prompt_set(config, other, tokenizer)
    bad += [*other.bad, *others.bad]
  if held_out is not None:
    held_out = _some(held_out, range(len(held_out.ids))[: evaluation.limit])
    width = max(chosen.width, held_out.width)
    chosen, held_out = (x._replace(width=width) for x in (chosen, held_out))
  if bad:
    audit.write_bad_records(bad, run_dir / "bad_rows.jsonl")
  counts = {
    "source": loaded.name,
    "source_sha256": loaded.sha256,
    "rows": len(loaded.records) + len(loaded.bad),
    "dropped": len(bad),
    "problems": dict(Counter(one.problem for one in bad)),
    "first_dropped": audit.listed(bad),
    "repeated_prompts": len(loaded.records) - tokenised.lengths.prompt.total(),
    "lengths": {
      "prompt": audit.percentiles(tokenised.lengths.prompt, config.limits.prompt)
    },
    "prompts": len(chosen.ids),
    "held_out_prompts": 0 if held_out is None else len(held_out.ids),
    "longest_prompt": chosen.width,
    "overlap": 0 if held_out is None else audit.overlap(chosen.ids, held_out.ids),
    "truncated_prompts": tokenised.counts.truncated_prompts,
    "control_tokens": tokenised.counts.control_tokens,
    "unread": tokenised.counts.unread,
    "unused_columns": loaded.unused,
  }
  return chosen, held_out, counts


def _prompt_set(
  config: Prompts, loaded: Loaded, tokenizer: Any
) -> tuple[PromptSet, tokenise.TokenisedPrompts]:
  """The different prompts of a source, and what became of all."""
  first: dict[tuple[str, str], Record] = {}
  for row in loaded.records:  # the first of equal ones, at the place of the last
    key = _prompt_key(row)
    first[key] = first.pop(key, row)
  tokenised = tokenise.tokenise_valid_prompts(
    list(first.values()), tokenizer, config.template, limits=config.limits
  )
  bad = [*loaded.bad, *tokenised.bad]
  if bad and config.bad_rows == "stop":
    raise records.BadRecords(bad)
  rows = tokenised.records
  if not rows:
    raise ValueError(
      f"Prompts.path {config.path!r}: there is no prompt ({len(bad)} rows were "
      "dropped); give at least one"
    )
  texts = tuple(map(records.prompt_string, rows))
  uids = tuple(row.uid for row in rows)
  width = max(map(len, tokenised.ids))
  return PromptSet(uids, texts, tokenised.ids, width), tokenised


def _prompt_key(row: Record) -> tuple[str, str]:
  """By what equal prompts are found: text, and columns that a reward reads."""
  columns = row.columns if isinstance(row, records.Prompt) else {}
  return split.prompt_text(row), json.dumps(columns, sort_keys=True)


def _some(prompts: PromptSet, rows: Sequence[int]) -> PromptSet:
  columns = (prompts.uids, prompts.texts, prompts.ids)
  return PromptSet(*(tuple(x[row] for row in rows) for x in columns), prompts.width)
