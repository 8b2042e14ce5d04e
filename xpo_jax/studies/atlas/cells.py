"""Runs cells and keeps them: one JSON line each, found again by digest.

A cell's digest is of its function, settings, seed and of the code that it runs
(`code_digest`). The lines of every table are one cache: a cell that another table has
run is not run again.
"""

import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from xpo_jax import objectives
from xpo_jax.config import yaml_file
from xpo_jax.studies.atlas import code_digest
from xpo_jax.studies.atlas.table import Cell

FILE = "cells.jsonl"
Line = dict[str, Any]
_PACKAGES = ("jax", "numpy", "optax")


def digest(cell: Cell) -> str:
  """The key of a cell."""
  content = {
    "run": cell.run_name,
    "settings": cell.settings,
    "seed": cell.seed,
    "code": _code(cell.run.__module__, tuple(_objectives(cell.settings))),
  }
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:20]


def run(cell: Cell) -> Line:
  """Runs a cell; returns its line."""
  began = time.perf_counter()
  metrics = cell.run(cell.seed, **cell.settings)
  return {
    "digest": digest(cell),
    "run": cell.run_name,
    "settings": cell.settings,
    "seed": cell.seed,
    "metrics": {name: _plain(value) for name, value in metrics.items()},
    "seconds": round(time.perf_counter() - began, 3),
    **_surroundings(),
  }


def append(path: Path, line: Line) -> None:
  """Adds a line to a file; it is on disk when this returns."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8") as file:
    file.write(_text(line))
    file.flush()
    os.fsync(file.fileno())


def write(path: Path, lines: list[Line]) -> None:
  """Replaces a file at once."""
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_suffix(".new")
  new.write_text("".join(map(_text, lines)), encoding="utf-8")
  new.replace(path)


def read(path: Path) -> list[Line]:
  """The lines of a file; one that a kill cut short is left out."""
  if not path.exists():
    return []
  lines = []
  for text in path.read_text(encoding="utf-8").splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  return lines


def cached(*folders: Path) -> dict[str, Line]:
  """The cells of every table in folders of results, by digest; the first one wins."""
  found: dict[str, Line] = {}
  for folder in folders:
    for path in sorted(folder.glob(f"*/{FILE}")):
      for line in read(path):
        found.setdefault(line["digest"], line)
  return found


def _text(line: Line) -> str:
  return json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n"


def _plain(value: Any) -> float | list[float]:
  """Six digits: a file's size, and noise of the last bits between machines."""
  array = np.asarray(value, np.float64)
  rounded = [float(f"{x:.6g}") for x in array.ravel()]
  return rounded if array.ndim else rounded[0]


def _objectives(settings: Mapping[str, Any]) -> list[str]:
  """Names of objectives anywhere in settings: values of the key "objective"."""
  names = []
  for key, value in settings.items():
    if isinstance(value, Mapping):
      names += _objectives(value)
    elif key == "objective":
      names.append(value)
  return sorted(names)


@functools.cache
def _code(module: str, names: tuple[str, ...]) -> str:
  files = [f"xpo_jax.objectives.{objectives.HOME[name]}" for name in names]
  return code_digest.digest([module, *files])


@functools.cache
def _surroundings() -> dict[str, Any]:
  versions = {name: metadata.version(name) for name in _PACKAGES}
  where = yaml_file.surroundings()
  return {
    "commit": where["code"]["git"],
    "versions": {"python": platform.python_version()} | versions,
    "hardware": where["devices"],
  }
