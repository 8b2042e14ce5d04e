"""What a run starts from: its records, its tokenizer and weights, its examples."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import transformers

from xpo_jax.config.experiment import (
  Data,
  Evaluation,
  Experiment,
  Pretrained,
  Scratch,
  factory,
)
from xpo_jax.data import audit, records, sources, split, synthetic_reviews, tfds
from xpo_jax.data.records import Record
from xpo_jax.data.sources import Loaded
from xpo_jax.data.tokenise import Example
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.config import Config
from xpo_jax.types import Params

Datasets = Mapping[str, Sequence[Record]]


class Beginning(NamedTuple):
  """Where policy and reference start.

  Attributes:
    config: of the decoder.
    params: `{"lm": ..., "value": ... where the checkpoint holds a scalar head}`.
    tokenizer: of transformers.
  """

  config: Config
  params: Params
  tokenizer: Any


def load(data: Data | Evaluation, like: Data, datasets: Datasets) -> Loaded:
  """The records of a source, by its path.

  Args:
    data: names the source.
    like: says how rows are read.
    datasets: records by the name that stands as a path.

  Raises:
    ValueError: a path of no known kind, or what `data.sources` raises.
  """
  path = data.path
  if path in datasets:
    loaded = _from_records(path, datasets[path])
  elif path.startswith("world:"):
    loaded = _embedded(path)
  elif path.endswith((".jsonl", ".jsonl.gz")):
    if not Path(path).exists():
      raise ValueError(f"{type(data).__name__}.path is {path!r}: no such file")
    loaded = sources.read_jsonl(path, like.reading)
  elif path.startswith("hub:"):
    loaded = sources.from_hub(path.removeprefix("hub:"), data.split, like.reading)
  elif Path(path).is_dir():
    loaded = tfds.read_directory(path, data.split, like.reading)
  else:
    held = (
      f", or one of the records handed over: {', '.join(datasets)}" if datasets else ""
    )
    raise ValueError(
      f"{type(data).__name__}.path is {path!r}; it must be a .jsonl or .jsonl.gz file, "
      f"a TFDS directory, hub:NAME, or world:NUMBER{held}"
    )
  if data.portion is not None:
    rows = split.by_prompt(loaded.records, split.PORTIONS, like.seed)[data.portion]
    loaded = dataclasses.replace(loaded, records=tuple(rows))
  if data.limit is not None:
    loaded = dataclasses.replace(loaded, records=loaded.records[: data.limit])
  return loaded


def begin(
  experiment: Experiment, run_dir: Path, loaded: Loaded, stage: Path | None
) -> Beginning:
  """Tokenizer and start of an experiment.

  Args:
    experiment: the run.
    run_dir: where a tokenizer trained here is kept, so that a resumed run has the
      same.
    loaded: what a tokenizer is trained on.
    stage: directory of the policy of the stage before, for a `Trained` start.
  """
  start = experiment.start
  if isinstance(start, Scratch):
    tokenizer = _tokenizer(start, run_dir, loaded)
    key = jax.random.fold_in(jax.random.key(experiment.seed), 0)
    params = {"lm": transformer.model(start.model).init(key)}
    return Beginning(start.model, params, tokenizer)
  if isinstance(start, Pretrained):
    held = hf_checkpoint.load(start.directory, start.compute_dtype, start.remat)
    where = start.directory
  else:
    first = start.experiment
    while not isinstance(first.start, Scratch | Pretrained):
      first = first.start.experiment
    source = first.start.model if isinstance(first.start, Scratch) else first.start
    held = hf_checkpoint.load(stage, source.compute_dtype, source.remat)
    where = stage
  if held.tokenizer is None:
    raise ValueError(f"{where} has no tokenizer; save one beside the weights")
  return Beginning(*held)


def prepare(
  experiment: Experiment,
  loaded: Loaded,
  tokenizer: Any,
  run_dir: Path,
  datasets: Datasets,
) -> tuple[list[Example], list[Example], dict[str, Any]]:
  """Examples to train on, held-out examples, and the audit of both as plain data.

  Raises:
    BadRecords: bad records, where they stop the run.
  """
  data, held = experiment.data, experiment.evaluation
  fractions = {"train": 1 - held.share}
  if held.share:
    fractions["held_out"] = held.share
  made = _prepare(data, loaded, tokenizer, fractions, run_dir / "bad_rows.jsonl")
  counts = made.audit.summary()
  examples = made.examples
  if held.path is not None:
    other = load(held, data, datasets)
    file = run_dir / "bad_rows_held_out.jsonl"
    made = _prepare(data, other, tokenizer, {"held_out": 1.0}, file)
    examples = examples | made.examples
    counts = counts | {"held_out": made.audit.summary()}
  if data.transform is not None:
    transform = factory(data.transform)
    examples = {name: transform(rows, tokenizer) for name, rows in examples.items()}
  return examples["train"], examples.get("held_out", []), counts


def examples(
  data: Data, tokenizer: Any, file: Path, datasets: Datasets
) -> tuple[list[Example], dict[str, Any]]:
  """All examples of a source, and the audit as plain data.

  Args:
    data: the source.
    tokenizer: of transformers.
    file: where bad rows are listed, where they are dropped.
    datasets: see `load`.

  Raises:
    BadRecords: bad records, where they stop the run.
  """
  loaded = load(data, data, datasets)
  made = _prepare(data, loaded, tokenizer, {"train": 1.0}, file)
  rows = made.examples["train"]
  if data.transform is not None:
    rows = factory(data.transform)(rows, tokenizer)
  return rows, made.audit.summary()


def _prepare(data, loaded, tokenizer, fractions, file) -> audit.Prepared:
  return audit.prepare(
    loaded,
    tokenizer,
    fractions=fractions,
    template=data.template,
    limits=data.limits,
    seed=data.seed,
    bad_rows=data.bad_rows,
    bad_rows_file=file,
  )


def _from_records(name: str, rows: Sequence[Record]) -> Loaded:
  text = json.dumps([dataclasses.asdict(row) for row in rows], sort_keys=True)
  return Loaded(name, tuple(rows), (), hashlib.sha256(text.encode()).hexdigest())


def _embedded(path: str) -> Loaded:
  number = path.removeprefix("world:")
  if not number.isdecimal() or not int(number):
    raise ValueError(
      f"path {path!r}: world:NUMBER wants a number of reviews, at least 1"
    )
  rows = [
    records.Demonstration(f"review {i}", prompt, completion)
    for i, (prompt, completion) in enumerate(
      synthetic_reviews.generate(int(number), seed=0)
    )
  ]
  return _from_records(path, rows)


def _tokenizer(start: Scratch, run_dir: Path, loaded: Loaded) -> Any:
  kept = run_dir / "tokenizer"
  if start.tokenizer is not None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(start.tokenizer)
  elif kept.exists():
    tokenizer = transformers.AutoTokenizer.from_pretrained(kept)
  else:
    texts = [
      records.plain_text(row.prompt) + records.plain_text(answer)
      for row in loaded.records
      for answer in records.completions(row) or ("",)  # a bare prompt has none
    ]
    tokenizer = synthetic_reviews.train_bpe(texts, start.model.vocab)
    tokenizer.save_pretrained(kept)
  if len(tokenizer) > start.model.vocab:
    raise ValueError(
      f"Scratch.model.vocab is {start.model.vocab}, the tokenizer has "
      f"{len(tokenizer)} tokens; raise vocab"
    )
  return tokenizer
