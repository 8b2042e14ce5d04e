"""Reads rows of files: JSON, CSV, Parquet, Arrow, and directories of `save_to_disk`.

Tables are read by PyArrow, whole. A null in a struct is an absent key: Arrow gives all
structs of a column the same keys. CSV has text alone: a cell of a column that holds no
text, such as `label` or `messages`, is JSON, and so is a text cell that holds messages;
an empty cell is no value.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from xpo_jax.data import sources
from xpo_jax.data.records import BadRecord
from xpo_jax.data.sources import Loaded, Reading

_TEXTS = frozenset({"prompt", "completion", "chosen", "rejected", "text"})
_VALUES = frozenset(
  {"label", "labels", "reward", "rewards", "probability", "completions", "messages"}
  | {"tools", "documents", "chat_template_kwargs"}
)
_JSON_LINES = (".jsonl", ".jsonl.gz")
_DICT, _STATE = "dataset_dict.json", "state.json"
Rows = list[dict[str, Any] | BadRecord]


def read(path: str | os.PathLike, split: str, reading: Reading = Reading()) -> Loaded:
  """Reads a file of rows, or a directory of `save_to_disk`.

  Args:
    path: a file with a suffix of `SUFFIXES`, or a directory.
    split: of a directory with several.
    reading: how rows are read.

  Raises:
    ValueError: a file that cannot be read as what its suffix says, or has no rows; an
      unknown split; see also `sources.read_jsonl`.
  """
  path = Path(path)
  if path.name.endswith(_JSON_LINES):
    return sources.read_jsonl(path, reading)
  if not path.is_dir():
    return sources.from_dicts(rows(path, reading.rename), path.name, reading)
  directory, name = path, path.name
  if (path / _DICT).exists():
    known = json.loads((path / _DICT).read_text(encoding="utf-8"))["splits"]
    if split not in known:
      raise ValueError(f"split: {split!r} is not among {known} of {path}")
    directory, name = path / split, f"{path.name}/{split}"
  state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
  files = [directory / one["filename"] for one in state["_data_files"]]
  every = [row for file in files for row in rows(file)]
  return sources.from_dicts(every, name, reading)


def is_saved(directory: Path) -> bool:
  """Whether a directory is one of `save_to_disk`."""
  return (directory / _DICT).exists() or (directory / _STATE).exists()


def rows(path: Path, rename: Mapping[str, str] | None = None) -> Rows:
  """Reads the rows of a file, by its suffix.

  Args:
    path: the file.
    rename: see `Reading`; says which columns of a CSV file hold text.

  Raises:
    ValueError: a suffix that is none of `SUFFIXES`; a file that cannot be read.
  """
  suffix = next((one for one in SUFFIXES if path.name.endswith(one)), None)
  if suffix is None:
    raise ValueError(f"{path}: known files end with {', '.join(SUFFIXES)}")
  try:
    if suffix == ".csv":
      return _csv(path, rename or {})
    return _READERS[suffix](path)
  except (pa.ArrowException, csv.Error, ValueError, OSError, EOFError) as error:
    if isinstance(error, FileNotFoundError):
      raise ValueError(f"{path}: no such file") from error
    reason = " ".join(str(error).split())[:300]
    raise ValueError(f"{path.name} cannot be read as {suffix}: {reason}") from error


def _json_lines(path: Path) -> Rows:
  return [row for _, row in sources.json_lines(path)]


def _json(path: Path) -> Rows:
  try:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
  except json.JSONDecodeError:
    lines = _json_lines(path)
    if not any(isinstance(line, dict) for line in lines):
      raise
    return lines
  if isinstance(content, dict) and isinstance(content.get("data"), list):
    content = content["data"]
  return content if isinstance(content, list) else [content]


def _csv(path: Path, rename: Mapping[str, str]) -> Rows:
  csv.field_size_limit(2**31 - 1)  # the default of 128 kB is less than a long text
  found = []
  with path.open(encoding="utf-8-sig", newline="") as file:
    for row in csv.DictReader(file, strict=True):
      if None in row or None in row.values():
        raise ValueError(
          f"row {len(found) + 1} has another number of cells than the header"
        )
      found.append({name: _cell(rename.get(name, name), x) for name, x in row.items()})
  return found


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
  return _of_tables([pyarrow.parquet.read_table(path)])


def _arrow(path: Path) -> Rows:
  """Rows of an Arrow file, in the format of files or of streams."""
  with pa.memory_map(str(path)) as source:
    try:
      reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
      source.seek(0)
      reader = pa.ipc.open_stream(source)
    return _of_tables([reader.read_all()])


def _of_tables(tables: Iterable[pa.Table]) -> Rows:
  return [_without_nulls(row) for table in tables for row in table.to_pylist()]


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
