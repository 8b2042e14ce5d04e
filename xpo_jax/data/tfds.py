"""TFDS data sets without TensorFlow: array_record files, read by index."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from xpo_jax.data import sources
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

  The hash of the source is in the config's name, so that a changed source is built
  anew: TFDS would otherwise silently open the old files.

  Args:
    name: of the data set, in snake_case.
    rows: the rows of each split.
    features: TFDS features by column, such as `PAIR`.
    source_sha256: hash of what the rows were made from.
    data_dir: where TFDS data sets lie.

  Returns:
    The directory to `open_directory`.

  Raises:
    ValueError: a name that TFDS cannot take, or no rows.
  """
  if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
    raise ValueError(f"name: {name!r} is not snake_case")
  splits = {split: list(members) for split, members in rows.items()}
  if not all(splits.values()) or not splits:
    raise ValueError(f"rows: a split of {list(splits)} holds no rows")

  # Not TFDS's own AdhocBuilder, which needs TensorFlow.
  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=f"sha256_{source_sha256[:16]}")]

    def _info(self):
      columns = tfds.features.FeaturesDict(dict(features))
      # disable_shuffling: row n stays line n.
      return tfds.core.DatasetInfo(
        builder=self, features=columns, disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      del dl_manager  # nothing is downloaded
      return {
        split: self._generate_examples(members) for split, members in splits.items()
      }

    def _generate_examples(self, members):
      return enumerate(members)  # TFDS wants a key for each row

  Builder.name = name
  builder = Builder(data_dir=os.fspath(data_dir), file_format="array_record")
  builder.download_and_prepare(file_format="array_record")
  return Path(builder.data_dir)


def open_directory(
  directory: str | os.PathLike, split: str, reading: Reading = Reading()
) -> Loaded:
  """Reads a prepared TFDS directory (name/config/version), ours or anyone's.

  Args:
    directory: where `dataset_info.json` lies; its files must be array_record.
    split: a TFDS split, slices allowed ("train[:10%]").
    reading: how rows are read; `imdb_reviews` has `text` and needs `prompt_words`.

  Raises:
    FileNotFoundError: not a prepared data set.
    ValueError: an unknown split or other files than array_record; see also
      `sources.read_jsonl`.
  """
  directory = Path(directory)
  if not (directory / "dataset_info.json").is_file():
    raise FileNotFoundError(
      f"source: {directory} holds no dataset_info.json; name the version's directory "
      "of a prepared data set (data_dir/name/config/version)"
    )
  builder = tfds.builder_from_directory(os.fspath(directory))
  if builder.info.file_format.value != "array_record":
    raise ValueError(
      f"source: {directory} holds {builder.info.file_format.value} files, which need "
      'TensorFlow; prepare it with file_format="array_record"'
    )
  known = sorted(builder.info.splits)
  if split.split("[")[0] not in known:
    raise ValueError(f"split: {split!r} is not in {known}")
  rows = [_plain(row) for row in builder.as_data_source(split)]
  return sources.from_rows(rows, f"{builder.info.name}/{split}", reading)


def _plain(value: Any) -> Any:
  """TFDS hands out bytes and NumPy scalars where records want str and numbers."""
  match value:
    case bytes():
      return value.decode("utf-8")
    case Mapping():
      return {name: _plain(inner) for name, inner in value.items()}
    case np.ndarray() | list() | tuple():
      return [_plain(inner) for inner in value]
    case np.generic():
      return value.item()
  return value
