"""Runs cells and keeps them: one JSON line each, found again by digest.

A cell's digest is of its function, settings, seed and of the code that it runs
(`code_digest`). The lines of every table are one cache: a cell that another table has
run is not run again. JSON has no number for a metric that is not finite: it is null.
"""

import functools
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xpo_jax import objectives
from xpo_jax.config import yaml_file
from xpo_jax.data import sealed_files
from xpo_jax.studies.atlas import code_digest
from xpo_jax.studies.atlas.table import Cell, Results, Table

FILE = "cells.jsonl"
Line = dict[str, Any]
_PACKAGES = ("jax", "numpy", "optax")


def identity(cell: Cell | Line) -> str:
  """What a cell or its line is a run of, whatever the code: the same text for both."""
  if isinstance(cell, Cell):
    cell = {"run": cell.run_name, "settings": cell.settings, "seed": cell.seed}
  return json.dumps([cell["run"], cell["settings"], cell["seed"]], sort_keys=True)


def digest(cell: Cell) -> str:
  """The key of a cell in the cache: of its identity and its code."""
  code = _code(cell.run.__module__, tuple(_objectives(cell.settings)))
  return hashlib.sha256(f"{identity(cell)} {code}".encode()).hexdigest()[:20]


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


def of_table(table: Table, lines: Iterable[Line]) -> list[list[Line]]:
  """The lines of a table's cells, arm by arm and seed by seed.

  Args:
    table: the claim.
    lines: one for each of its cells, of any code, and any others.

  Raises:
    ValueError: a cell has no line.
  """
  there = {identity(line): line for line in lines}
  arms = []
  for arm, row in zip(table.arms, table.cells(), strict=True):
    missing = [cell.seed for cell in row if identity(cell) not in there]
    if missing:
      raise ValueError(
        f"no cell of {arm.series} at {arm.strength:g} with seeds {missing}; "
        "`xpo reproduce` runs it"
      )
    arms.append([there[identity(cell)] for cell in row])
  return arms


def results(table: Table, lines: Iterable[Line]) -> Results:
  """The metrics of a table's cells; one that was not finite is NaN.

  The arguments and errors are those of `of_table`.
  """
  metrics = [
    [{name: _number(x) for name, x in line["metrics"].items()} for line in row]
    for row in of_table(table, lines)
  ]
  return Results(table.arms, metrics)


def not_finite(table: Table, lines: Iterable[Line]) -> list[str]:
  """The metrics of a table's cells that were not finite: series, strength, seed, name.

  The arguments and errors are those of `of_table`.
  """
  return [
    f"{arm.series} at {arm.strength:g}, seed {line['seed']}: {name}"
    for arm, row in zip(table.arms, of_table(table, lines), strict=True)
    for line in row
    for name, value in line["metrics"].items()
    if value is None or (isinstance(value, list) and None in value)
  ]


def append(path: Path, line: Line) -> None:
  """Adds a line to a file; it is on disk when this returns.

  It starts on a line of its own where a kill cut the last one short.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a+b") as file:
    if file.tell():
      file.seek(-1, os.SEEK_END)
      if file.read() != b"\n":
        file.write(b"\n")
    file.write(_text(line).encode())
    file.flush()
    os.fsync(file.fileno())


def write(path: Path, lines: list[Line]) -> None:
  """Replaces a file at once."""
  path.parent.mkdir(parents=True, exist_ok=True)
  sealed_files.write_text(path, "".join(map(_text, lines)))


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
  text = json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False)
  return text + "\n"


def _plain(value: Any) -> float | list[float | None] | None:
  """Six digits: a file's size, and noise of the last bits between machines."""
  array = np.asarray(value, np.float64)
  rounded = [float(f"{x:.6g}") if math.isfinite(x) else None for x in array.ravel()]
  return rounded if array.ndim else rounded[0]


def _number(value: float | list[float | None] | None) -> float | list[float]:
  """What `_plain` returned, null as NaN."""
  if isinstance(value, list):
    return [math.nan if x is None else x for x in value]
  return math.nan if value is None else value


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
    "hardware": _hardware(),
  }


def _hardware() -> str:
  """Accelerators, or the processor's cores: of CPUs JAX counts virtual devices."""
  device = jax.devices()[0]
  if device.platform == "cpu":
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
  return f"{jax.device_count()} x {device.device_kind}"
