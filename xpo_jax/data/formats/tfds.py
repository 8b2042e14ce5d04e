"""Builds and reads TFDS data sets without TensorFlow, from array_record files."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from xpo_jax.data import sources
from xpo_jax.data.formats import splits
from xpo_jax.data.sources import Loaded, Reading

PAIR = {name: tfds.features.Text() for name in ("prompt", "chosen", "rejected")}
LABELLED_TEXT = {  # as imdb_reviews
  "text": tfds.features.Text(),
  "label": tfds.features.ClassLabel(names=["neg", "pos"]),
}


def build(
  name: str,
  rows: Mapping[str, Iterable[Mapping[str, Any]]],
  features: Mapping[str, Any],
  *,
  source_sha256: str,
  data_dir: str | os.PathLike,
) -> Path:
  """Writes rows as a TFDS data set of array_record files.

  The source's hash is part of the config name, so that a changed source is rebuilt:
  TFDS would otherwise silently reuse the old files.

  Args:
    name: of the data set, in snake_case.
    rows: the rows of each split.
    features: TFDS features by column, such as `PAIR`.
    source_sha256: hash of the source of the rows.
    data_dir: root directory of TFDS data sets.

  Returns:
    The data set's directory, for `read_directory`.

  Raises:
    ValueError: a name that is not snake_case, or a split without rows.
  """
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise ValueError(f"name: {name!r} is not snake_case, which TFDS requires")
  splits = {split: list(members) for split, members in rows.items()}
  if not all(splits.values()) or not splits:
    raise ValueError(f"rows: a split of {list(splits)} has no rows; leave it out")

  # Not TFDS's own AdhocBuilder, which needs TensorFlow.
  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=f"sha256_{source_sha256[:16]}")]

    def _info(self):
      columns = tfds.features.FeaturesDict(dict(features))
      # disable_shuffling keeps the order of the rows.
      return tfds.core.DatasetInfo(
        builder=self, features=columns, disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      del dl_manager  # nothing is downloaded
      return {
        split: self._generate_examples(members) for split, members in splits.items()
      }

    def _generate_examples(self, members):
      return enumerate(members)  # TFDS requires a key for each row

  Builder.name = name
  builder = Builder(data_dir=os.fspath(data_dir), file_format="array_record")
  builder.download_and_prepare(file_format="array_record")
  return Path(builder.data_dir)


def read_directory(
  directory: str | os.PathLike, split: str, reading: Reading = Reading()
) -> Loaded:
  """Reads a prepared TFDS directory (name/config/version).

  Args:
    directory: contains `dataset_info.json`; its files must be array_record.
    split: a TFDS split, slices allowed ("train[:10%]").
    reading: how rows are read; `imdb_reviews` has `text` and needs `prompt_words`.

  Raises:
    FileNotFoundError: not a prepared data set.
    ValueError: an unknown split, or a file format other than array_record; see also
      `sources.read_jsonl`.
  """
  directory = Path(directory)
  if not (directory / "dataset_info.json").is_file():
    raise FileNotFoundError(
      f"source: {directory} has no dataset_info.json; give the version's directory of "
      "a prepared data set (data_dir/name/config/version)"
    )
  builder = tfds.builder_from_directory(os.fspath(directory))
  if builder.info.file_format.value != "array_record":
    raise ValueError(
      f"source: {directory} has {builder.info.file_format.value} files, which need "
      'TensorFlow; prepare it with file_format="array_record"'
    )
  split = splits.find(split, builder.info.splits, str(directory))
  rows = builder.as_data_source(split)
  size = builder.info.splits[split.split("[")[0]].num_bytes
  name = f"{builder.info.name}/{split}"
  return sources.from_rows(lambda: map(_to_python, rows), name, size, reading)


def _to_python(value: Any) -> Any:
  """Converts TFDS's bytes and NumPy scalars to str and Python numbers."""
  match value:
    case bytes():
      return value.decode("utf-8")
    case Mapping():
      return {name: _to_python(inner) for name, inner in value.items()}
    case np.ndarray() | list() | tuple():
      return [_to_python(inner) for inner in value]
    case np.generic():
      return value.item()
  return value
