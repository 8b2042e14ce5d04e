"""Reads rows of files: JSON, CSV, Parquet, Arrow, and directories of `save_to_disk`.

Tables are read by PyArrow, batch by batch; JSON alone is read whole. A null in a struct
is an absent key: Arrow gives all structs of a column the same keys. CSV has text alone:
a cell of a column that holds no text, such as `label` or `messages`, is JSON, and so is
a text cell that holds messages; an empty cell is no value.
"""

import contextlib
import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from xpo_jax.data import sources
from xpo_jax.data.formats import splits
from xpo_jax.data.records import BadRecord
from xpo_jax.data.sources import Loaded, Reading

_TEXTS = frozenset({"prompt", "completion", "chosen", "rejected", "text"})
_VALUES = frozenset(
  {"label", "labels", "reward", "rewards", "probability", "completions", "messages"}
  | {"tools", "documents", "chat_template_kwargs"}
)
_JSON_LINES = (".jsonl", ".jsonl.gz")
_DICT, _STATE = "dataset_dict.json", "state.json"
_BATCH = 256  # rows of a table that are converted at once
Rows = Iterator[dict[str, Any] | BadRecord]


def read(path: str | os.PathLike, split: str, reading: Reading = Reading()) -> Loaded:
  """Reads a file of rows, or a directory of `save_to_disk`.

  Args:
    path: a file with a suffix of `SUFFIXES`, or a directory.
    split: of a directory with several, as `splits.find` takes it.
    reading: how rows are read.

  Raises:
    ValueError: a file that cannot be read as what its suffix says, or has no rows; an
      unknown split; see also `sources.read_jsonl`.
  """
  path = Path(path)
  if path.name.endswith(_JSON_LINES):
    return sources.read_jsonl(path, reading)
  if not path.is_dir():
    return read_files([path], path.name, reading)
  directory, name = path, path.name
  if (path / _DICT).exists():
    known = json.loads((path / _DICT).read_text(encoding="utf-8"))["splits"]
    split = splits.find(split, known, str(path))
    directory, name = path / split, f"{path.name}/{split}"
  state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
  files = [directory / one["filename"] for one in state["_data_files"]]
  return read_files(files, name, reading)


def read_files(files: Sequence[Path], name: str, reading: Reading) -> Loaded:
  """Reads the rows of files as one source, one file after the other.

  Args:
    files: each with a suffix of `SUFFIXES`.
    name: of the source.
    reading: how rows are read.

  Raises:
    ValueError: as `read`.
  """

  def every() -> Rows:
    return itertools.chain.from_iterable(rows(file, reading.rename) for file in files)

  return sources.from_rows(every, name, sum(map(_size, files)), reading)


def _size(file: Path) -> int:
  """Bytes of the rows of a file: of Parquet before compression."""
  if not file.exists():
    raise ValueError(f"{file}: no such file")
  if file.suffix != ".parquet":
    return sources.file_size(file)
  with _readable(file, ".parquet"):
    about = pyarrow.parquet.read_metadata(file)
  return sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))


def is_saved(directory: Path) -> bool:
  """Whether a directory is one of `save_to_disk`."""
  return (directory / _DICT).exists() or (directory / _STATE).exists()


def rows(path: Path, rename: Mapping[str, str] | None = None) -> Rows:
  """Yields the rows of a file, by its suffix.

  Args:
    path: the file.
    rename: see `Reading`; says which columns of a CSV file hold text.

  Raises:
    ValueError: a suffix that is none of `SUFFIXES`; a file that cannot be read.
  """
  suffix = next((one for one in SUFFIXES if path.name.endswith(one)), None)
  if suffix is None:
    raise ValueError(f"{path}: known files end with {', '.join(SUFFIXES)}")
  with _readable(path, suffix):
    if suffix == ".csv":
      yield from _csv(path, rename or {})
    else:
      yield from _READERS[suffix](path)


@contextlib.contextmanager
def _readable(path: Path, suffix: str) -> Iterator[None]:
  """Says of which file an error is."""
  try:
    yield
  except (pa.ArrowException, csv.Error, ValueError, OSError, EOFError) as error:
    if isinstance(error, FileNotFoundError):
      raise ValueError(f"{path}: no such file") from error
    reason = " ".join(str(error).split())[:300]
    raise ValueError(f"{path.name} cannot be read as {suffix}: {reason}") from error


def _json_lines(path: Path) -> Rows:
  return (row for _, row in sources.json_lines(path))


def _json(path: Path) -> Rows:
  try:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
  except json.JSONDecodeError:
    if not any(isinstance(line, dict) for line in _json_lines(path)):
      raise
    return _json_lines(path)
  if isinstance(content, dict) and isinstance(content.get("data"), list):
    content = content["data"]
  return iter(content if isinstance(content, list) else [content])


def _csv(path: Path, rename: Mapping[str, str]) -> Rows:
  csv.field_size_limit(2**31 - 1)  # the default of 128 kB is less than a long text
  with path.open(encoding="utf-8-sig", newline="") as file:
    for number, row in enumerate(csv.DictReader(file, strict=True), 1):
      if None in row or None in row.values():
        raise ValueError(f"row {number} has another number of cells than the header")
      yield {name: _cell(rename.get(name, name), x) for name, x in row.items()}


def _cell(column: str, text: str) -> Any:
  """The value of a cell of CSV."""
  if not text:
    return None
  if column not in _TEXTS | _VALUES:
    return text
  try:
    value = json.loads(text.lower() if text in ("True", "False") else text)
  except ValueError:
    return text
  messages = isinstance(value, list) and all(
    isinstance(one, dict) and "role" in one for one in value
  )
  return value if column in _VALUES or (messages and value) else text


def _parquet(path: Path) -> Rows:
  with pyarrow.parquet.ParquetFile(path) as file:
    yield from _of_batches(file.iter_batches(_BATCH))


def _arrow(path: Path) -> Rows:
  """Rows of an Arrow file, in the format of files or of streams."""
  with pa.memory_map(str(path)) as source:
    try:
      reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
      source.seek(0)
      yield from _of_batches(pa.ipc.open_stream(source))
      return
    each = (reader.get_batch(n) for n in range(reader.num_record_batches))
    yield from _of_batches(each)


def _of_batches(batches: Iterable[pa.RecordBatch]) -> Rows:
  for batch in batches:
    for start in range(0, batch.num_rows, _BATCH):
      yield from map(_without_nulls, batch.slice(start, _BATCH).to_pylist())


def _without_nulls(value: Any) -> Any:
  """A value without the keys of structs that hold null."""
  if isinstance(value, dict):
    return {k: _without_nulls(x) for k, x in value.items() if x is not None}
  if isinstance(value, list):
    return [_without_nulls(item) for item in value]
  return value


_READERS: dict[str, Callable[[Path], Rows]] = {
  **dict.fromkeys(_JSON_LINES, _json_lines),
  ".json": _json,
  ".parquet": _parquet,
  ".arrow": _arrow,
}
SUFFIXES = (*_READERS, ".csv")
