"""Finds tables: files with a value `TABLE` in `experiments/papers/`.

Those on a chat model are in a folder of their own there (`worlds.FOLDERS`). As recipes,
tables are those of the working directory, and of the checkout or the installed package.
"""

import difflib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xpo_jax.studies import find_recipe
from xpo_jax.studies.atlas import worlds
from xpo_jax.studies.atlas.worlds import World

if TYPE_CHECKING:
  from xpo_jax.studies.atlas.table import Table


def files(world: World = worlds.EXACT) -> dict[str, Path]:
  """The file of each table of a world, by name; the working directory's come first."""
  found: dict[str, Path] = {}
  for directory in (Path.cwd() / "experiments", find_recipe.SHIPPED):
    for path in sorted((directory / worlds.FOLDERS[world]).glob("[!_]*.py")):
      found.setdefault(path.stem, path)
  return dict(sorted(found.items()))


def load(path: Path) -> "Table":
  """The table of a file.

  Raises:
    ValueError: the file defines no `TABLE`.
  """
  from xpo_jax.studies.atlas.table import Table  # NumPy: `xpo list` does without

  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  table = vars(module).get("TABLE")
  if not isinstance(table, Table):
    raise ValueError(f"{path} has no TABLE, a Table of xpo_jax.studies.atlas.table")
  return table


def named(names: Sequence[str], world: World = worlds.EXACT) -> "dict[str, Table]":
  """The tables that names mean: of a file, of a method, of a paper, or its number.

  Args:
    names: "azar2023_deterministic", "ipo", "IPO" or "2310.12036"; none: every table.
    world: of the tables.

  Raises:
    ValueError: a name that means no table; suggests the nearest.
  """
  tables = {name: load(path) for name, path in files(world).items()}
  if not names:
    return tables
  meant: dict[str, list[str]] = {}
  for name, table in tables.items():
    for alias in {name, table.method, _slug(table.paper), table.row.arxiv}:
      meant.setdefault(alias, []).append(name)
  chosen = {}
  for name in names:
    found = meant.get(name) or meant.get(_slug(name))
    if not found:
      near = difflib.get_close_matches(_slug(name), meant, n=1)
      hint = f" (did you mean {near[0]!r}?)" if near else ""
      raise ValueError(f"no table {name!r}{hint}; known: {', '.join(tables)}")
    chosen |= {table: tables[table] for table in found}
  return chosen


def _slug(name: str) -> str:
  return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")
