"""Recipes by name: files with a function `experiment(...) -> Experiment`.

They live in `experiments/` of the working directory, and of the checkout or the
installed package. Arguments of that function (`path`) are given as `path=FILE`. A file
that also has `run(experiment, run_dir)` is run by it, not by the trainer: a study of
many runs returns its own settings from `experiment`. Files in `experiments/tables/` are
tables, which rebuild a paper's result from several recipes; a name stands once in both
folders. Listing reads text and imports nothing.
"""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

STUDY = "study.json"
_PACKAGE = Path(__file__).parent.parent
_INSTALLED = _PACKAGE / "experiments"  # a wheel packs them here: see setup.py
_SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "experiments"
TABLES = "tables"  # the folder of tables in `experiments/`
Kind = Literal["recipe", "table"]


class Recipe(NamedTuple):
  """A recipe that was found.

  Attributes:
    experiment: `config.experiment.Experiment`, or the settings of a study.
    run: `(experiment, run_dir) -> exit code` of a study; None: the trainer runs it.
    arms: `settings -> {label: Experiment}`, the runs of a study, to be checked; None
      where the study does not list them.
    kind: "table" for a file of `experiments/tables/`.
  """

  experiment: Any
  run: Callable[[Any, Path], int] | None = None
  arms: Callable[[Any], Mapping[str, Any]] | None = None
  kind: Kind = "recipe"


def names(kind: Kind | None = None) -> dict[str, Path]:
  """Every recipe and table that a name finds; the working directory's come first.

  Args:
    kind: only those; None: both.
  """
  found: dict[str, Path] = {}
  for place in (Path.cwd() / "experiments", _SHIPPED):
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
  names_of = _executed(path)
  given = _arguments(recipe, names_of["experiment"], arguments)
  made = names_of["experiment"](**given)
  if not dataclasses.is_dataclass(made) or isinstance(made, type):
    raise ValueError(
      f"{path}: experiment() returned {made!r}; it must return an Experiment, or "
      "beside a function run() a dataclass of settings"
    )
  return Recipe(made, names_of.get("run"), names_of.get("arms"), kind_of(path))


def load_study(run_dir: Path) -> Recipe:
  """The study of a directory, with the settings that it began with.

  Raises:
    ValueError: no study there, or one of a recipe that no name finds.
  """
  from xpo_jax.config import yaml_file

  path = Path(run_dir) / STUDY
  if not path.exists():
    raise ValueError(f"{run_dir} is neither a run nor a study: it has no {STUDY}")
  record = json.loads(path.read_text(encoding="utf-8"))
  if record.get("recipe") not in names():
    raise ValueError(
      f"{path} is of no recipe that a name finds; run the same command again to go on: "
      f"xpo train RECIPE --run-dir {run_dir}"
    )
  recipe = _executed(path_of(record["recipe"]))
  settings = yaml_file.from_dict(recipe[record["class"]], record["settings"])
  return Recipe(settings, recipe["run"], recipe.get("arms"))


def study_record(settings: Any) -> dict[str, Any]:
  """What study.json holds: recipe, class and settings of a study."""
  from xpo_jax.config import yaml_file

  kind = type(settings)
  return {
    "recipe": kind.__module__,
    "class": kind.__name__,
    "settings": yaml_file.to_dict(settings),
  }


def _executed(path: Path) -> dict[str, Any]:
  """The names that a recipe file defines."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return vars(module)


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
