"""Writes and reads records as JSON lines, each with its kind."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpo_jax.data import records
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


def write(path: Path, rows: Sequence[Record]) -> None:
  """Writes records, a line each; whole or not at all."""
  beside = path.with_name(f"{path.name}.tmp")
  with beside.open("w", encoding="utf-8") as file:
    for row in rows:
      line = {"kind": type(row).__name__, **dataclasses.asdict(row)}
      file.write(json.dumps(line, ensure_ascii=False) + "\n")
    file.flush()
    os.fsync(file.fileno())
  beside.replace(path)


def read(path: Path) -> tuple[Record, ...]:
  """Records as they were written."""
  with path.open(encoding="utf-8", newline="\n") as file:
    return tuple(_record(json.loads(line)) for line in file)


def _record(line: dict[str, Any]) -> Record:
  kind = _KINDS[line.pop("kind")]
  arguments = line.pop("template_arguments")
  fields = {name: _value(value) for name, value in line.items()}
  return kind(**fields, template_arguments=arguments)


def _value(value: Any) -> Any:
  if isinstance(value, dict):
    return Turn(**value)
  return tuple(map(_value, value)) if isinstance(value, list) else value
