"""Recipes by name: files with a function `experiment(...) -> Experiment`.

They live in `experiments/` of the working directory or of the checkout, and in this
package. Arguments of that function (`path`) are given as `path=FILE`. A file that also
has `run(experiment, run_dir)` is run by it, not by the trainer: a study of many runs
returns its own settings from `experiment`. Files in `experiments/tables/` are tables,
which rebuild a paper's result from several recipes; a name stands once in both folders.
Listing reads text and imports nothing.
"""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

_PACKAGE = Path(__file__).parent.parent
TABLES = "tables"  # the folder of tables in `experiments/`
Kind = Literal["recipe", "table"]
# In a checkout beside the package, in a wheel within it.
_PLACES = (_PACKAGE / "experiments", _PACKAGE.parent / "experiments")


class Recipe(NamedTuple):
  """A recipe that was found.

  Attributes:
    experiment: `config.experiment.Experiment`, or the settings of a study.
    run: `(experiment, run_dir) -> exit code` of a study; None: the trainer runs it.
    kind: "table" for a file of `experiments/tables/`.
  """

  experiment: Any
  run: Callable[[Any, Path], int] | None = None
  kind: Kind = "recipe"


def names(kind: Kind | None = None) -> dict[str, Path]:
  """Every recipe and table that a name finds; the working directory's come first.

  Args:
    kind: only those; None: both.
  """
  found: dict[str, Path] = {}
  for place in (Path.cwd() / "experiments", *_PLACES):
    for path in [*sorted(place.glob("*.py")), *sorted((place / TABLES).glob("*.py"))]:
      try:
        one = _defines_experiment(path)
      except ValueError:
        one = True  # broken: said when it is asked for
      if one:
        found.setdefault(path.stem, path)
  return {n: path for n, path in found.items() if kind in (None, kind_of(path))}


def kind_of(path: Path) -> Kind:
  """Whether a file is a recipe or a table."""
  return "table" if path.parent.name == TABLES else "recipe"


def path_of(recipe: str) -> Path:
  """The file of a recipe, by its name or path.

  Raises:
    ValueError: no such recipe; says which one was likely meant.
  """
  if recipe.endswith(".py"):
    if not Path(recipe).is_file():
      raise ValueError(f"recipe {recipe}: no such file")
    return Path(recipe)
  known = names()
  if recipe not in known:
    near = difflib.get_close_matches(recipe, known, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    listed = ", ".join(known) or "none here"
    raise ValueError(
      f"no recipe {recipe!r}{meant}; known: {listed}; a path to a .py file with a "
      "function experiment(), or a run's config.yaml, will do too"
    )
  return known[recipe]


def load(recipe: str, arguments: Sequence[str] = ()) -> Recipe:
  """The experiment of a recipe, by name or path, or of a run's config.yaml.

  Args:
    recipe: name, path of a .py, or path of a config.yaml.
    arguments: `name=value` for the parameters of its `experiment`.

  Raises:
    ValueError: no such recipe; a file that is no Python, or has no `experiment`, or one
      that returns something else; an argument that is missing or that it does not have.
  """
  if Path(recipe).name == "config.yaml":
    from xpo_jax.config import yaml_file

    return Recipe(yaml_file.read(Path(recipe).parent)[0])
  path = path_of(recipe)
  if not _defines_experiment(path):
    raise ValueError(f"{path} is not a recipe: it has no function experiment()")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  held = vars(module)
  given = _arguments(recipe, held["experiment"], arguments)
  made, run = held["experiment"](**given), held.get("run")
  if not dataclasses.is_dataclass(made) or isinstance(made, type):
    raise ValueError(
      f"{path}: experiment() returned {made!r}; it must return an Experiment, or "
      "beside a function run() a dataclass of settings"
    )
  return Recipe(made, run, kind_of(path))


def _arguments(recipe: str, make: Callable, given: Sequence[str]) -> dict[str, str]:
  wanted = inspect.signature(make).parameters
  for one in given:
    if "=" not in one:
      raise ValueError(f"recipe {recipe}: {one!r} is no argument; write NAME=VALUE")
  pairs = dict(one.partition("=")[::2] for one in given)
  unknown = sorted(set(pairs) - set(wanted))
  missing = [n for n, p in wanted.items() if p.default is p.empty and n not in pairs]
  takes = " ".join(f"{name}=..." for name in wanted) or "no arguments"
  if unknown:
    raise ValueError(f"recipe {recipe} has no argument {unknown[0]}; it takes {takes}")
  if missing:
    raise ValueError(f"recipe {recipe} needs {missing[0]}=...; it takes {takes}")
  return pairs


def using(objective: str) -> tuple[str, ...]:
  """Names of the recipes that name an objective of the index."""
  use = re.compile(rf'ObjectiveConfig\(\s*"{objective}"')
  found = names().items()
  return tuple(name for name, path in found if use.search(path.read_text("utf-8")))


def required(recipe: str) -> tuple[str, ...]:
  """Arguments without which a recipe, by name or path, cannot be loaded."""
  body = _parsed(path_of(recipe)).body
  made = {n.name: n.args for n in body if isinstance(n, ast.FunctionDef)}["experiment"]
  names = [argument.arg for argument in made.args]
  without = [
    argument.arg
    for argument, default in zip(made.kwonlyargs, made.kw_defaults, strict=True)
    if default is None
  ]
  return (*names[: len(names) - len(made.defaults)], *without)


def summary(path: Path) -> str:
  """First line of a recipe's docstring; of a file that is no Python, where not."""
  try:
    text = ast.get_docstring(_parsed(path)) or ""
  except ValueError as error:
    text = str(error)
  return text.partition("\n")[0]


def _defines_experiment(path: Path) -> bool:
  body = _parsed(path).body
  return any(isinstance(n, ast.FunctionDef) and n.name == "experiment" for n in body)


def _parsed(path: Path) -> ast.Module:
  try:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
  except SyntaxError as error:
    raise ValueError(f"{path}, line {error.lineno}: {error.msg}; mend it") from error
