"""Writes and reads records as JSON lines, each with its kind."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpo_jax.data import records, sealed_files
from xpo_jax.data.records import Record, Turn

_KINDS = {
  kind.__name__: kind
  for kind in (
    records.Prompt,
    records.Demonstration,
    records.Pair,
    records.Rated,
    records.Ranked,
    records.Stepped,
  )
}

_MAPPINGS = ("template_arguments", "columns")  # all other mappings are turns


def write(path: Path, rows: Sequence[Record]) -> None:
  """Writes records, a line each; whole or not at all."""
  sealed_files.write_lines(
    path, ({"kind": type(row).__name__, **dataclasses.asdict(row)} for row in rows)
  )


def read(path: Path) -> tuple[Record, ...]:
  """Reads records as they were written.

  Raises:
    ValueError: the file is damaged.
  """
  return tuple(map(_record, sealed_files.read_lines(path)))


def _record(line: dict[str, Any]) -> Record:
  kind = _KINDS[line.pop("kind")]
  fields = {
    name: value if name in _MAPPINGS else _value(value) for name, value in line.items()
  }
  return kind(**fields)


def _value(value: Any) -> Any:
  if isinstance(value, dict):
    return Turn(**value)
  return tuple(map(_value, value)) if isinstance(value, list) else value
