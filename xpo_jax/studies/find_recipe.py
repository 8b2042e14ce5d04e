"""Finds and loads recipes: files with a function `experiment(...) -> Experiment`.

Recipes are in `experiments/` of the working directory, and of the checkout or the
installed package. Arguments of that function (`path`) are given as `path=FILE`. A file
that also has `run(experiment, run_dir)` is run by it, not by the trainer: a study of
many runs returns its own settings from `experiment`. Files in `experiments/tables/` are
tables, which rebuild a paper's result from several recipes; a name stands once in both
folders. Listing reads text and imports nothing.
"""

import ast
import builtins
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from xpo_jax import objectives
from xpo_jax.config import trust

STUDY = "study.json"
_PACKAGE = Path(__file__).parent.parent
_INSTALLED = _PACKAGE / "experiments"  # a wheel packs them here: see setup.py
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "experiments"
OBJECTIVE_FLAGS = (
  *("--model", "--teacher", "--data", "--held-out"),
  *("--prompts", "--reward", "--reward-weights"),
)
TABLES = "tables"  # the folder of tables in `experiments/`
Kind = Literal["recipe", "table"]


class Recipe(NamedTuple):
  """A loaded recipe.

  Attributes:
    experiment: `config.experiment.Experiment`, or the settings of a study.
    run: `(experiment, run_dir) -> exit code` of a study; None: the trainer runs it.
    arms: `settings -> {label: Experiment}`, the runs of a study, for `xpo check`; None
      where the study does not list them.
  """

  experiment: Any
  run: Callable[[Any, Path], int] | None = None
  arms: Callable[[Any], Mapping[str, Any]] | None = None


def names(kind: Kind | None = None) -> dict[str, Path]:
  """Every recipe and table that a name finds; the working directory's come first.

  Args:
    kind: only those; None: both.
  """
  recipes: dict[str, Path] = {}
  for directory in (Path.cwd() / "experiments", SHIPPED):
    for path in [
      *sorted(directory.glob("*.py")),
      *sorted((directory / TABLES).glob("*.py")),
    ]:
      try:
        is_recipe = _defines_experiment(path)
      except ValueError:
        is_recipe = True  # a syntax error is reported when it is loaded
      if is_recipe:
        recipes.setdefault(path.stem, path)
  return {n: path for n, path in recipes.items() if kind in (None, kind_of(path))}


def is_objective(recipe: str, words: Sequence[str]) -> bool:
  """Whether a command line is of an objective's own recipe (`objective_recipe`).

  Args:
    recipe: a name of the index, or "module:factory".
    words: those after it. A name of the index that a recipe file has too is the
      file's, unless a flag of the objective's recipe follows.
  """
  if recipe.endswith(".py") or (recipe not in objectives.NAMES and ":" not in recipe):
    return False
  given = {word.partition("=")[0] for word in words}
  return recipe not in names() or bool(given & set(OBJECTIVE_FLAGS))


def kind_of(path: Path) -> Kind:
  """Whether a file is a recipe or a table."""
  return "table" if path.parent.name == TABLES else "recipe"


def path_of(recipe: str) -> Path:
  """Finds the file of a recipe, by its name or path.

  Raises:
    ValueError: no such recipe; suggests the nearest name, of objectives too, which
      `xpo train` takes as well.
  """
  if recipe.endswith(".py"):
    if not Path(recipe).is_file():
      raise ValueError(f"recipe {recipe}: no such file")
    return Path(recipe)
  known = names()
  if recipe not in known:
    near = difflib.get_close_matches(recipe, {*known, *objectives.NAMES}, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    listed = ", ".join(known) or "none here"
    raise ValueError(
      f"no recipe or objective {recipe!r}{meant}; recipes: {listed}; `xpo list` has "
      "the objectives too; a path to a .py file with a function experiment(), or a "
      "run, will do as well"
    )
  return known[recipe]


def load(recipe: str, arguments: Sequence[str] = ()) -> Recipe:
  """Loads a recipe by name or path, or the experiment of a run.

  Args:
    recipe: name, path of a .py, or a run: its directory or config.yaml.
    arguments: `name=value` for the parameters of its `experiment`.

  Raises:
    ForeignCode: a run names code that is neither the package's nor trusted.
    ValueError: no such recipe; a syntax error; no function `experiment`, or one that
      returns something else; a missing or unknown argument.
  """
  if run_dir := run_of(recipe):
    from xpo_jax.config import yaml_file

    return Recipe(yaml_file.read(run_dir)[0])
  path = path_of(recipe)
  if not _defines_experiment(path):
    raise ValueError(f"{path} is not a recipe: it has no function experiment()")
  names_of = _executed(path)
  given = _arguments(recipe, names_of["experiment"], arguments)
  returned = names_of["experiment"](**given)
  if not dataclasses.is_dataclass(returned) or isinstance(returned, type):
    raise ValueError(
      f"{path}: experiment() returned {returned!r}; it must return an Experiment, or "
      "beside a function run() a dataclass of settings"
    )
  return Recipe(returned, names_of.get("run"), names_of.get("arms"))


def configured(recipe: str, words: Sequence[str], prog: str) -> Recipe:
  """Loads a recipe with its own arguments, the words before the first flag, and changes
  its experiment by the flags.

  Args:
    recipe: see `path_of`.
    words: of a command line, such as `["size=1B", "--seed", "1"]`.
    prog: the command and the recipe, for messages and `--help`.

  Raises:
    ValueError: see `load` and `command_line.from_args`; an argument behind a flag.
  """
  flags = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
  late = [
    word
    for before, word in itertools.pairwise(words[flags:])
    if "=" in word and not word.startswith("-") and not before.startswith("-")
  ]
  if late:
    raise ValueError(
      f"{late[-1]}: the recipe's own arguments stand before the first flag, as in "
      f"{prog} {late[-1]} {words[flags]} ..."
    )
  found = load(recipe, words[:flags])
  if flags == len(words):
    return found
  from xpo_jax.config import command_line  # slow to import

  changed = command_line.from_args(found.experiment, words[flags:], prog=prog)
  return found._replace(experiment=changed)


def run_of(recipe: str) -> Path | None:
  """The run that is named by its directory or config.yaml; None for a recipe."""
  path = Path(recipe)
  if path.name == "config.yaml":
    return path.parent
  return path if (path / "config.yaml").exists() else None


def load_study(run_dir: Path) -> Recipe:
  """Loads the study of a directory, with its recorded settings.

  Its recipe is one that a name finds, or a file that the user trusts by its path.

  Raises:
    ForeignCode: its settings name code that is neither the package's nor trusted.
    ValueError: no study; one whose recipe is not found, or has no such settings.
  """
  from xpo_jax.config import yaml_file
  from xpo_jax.data import sealed_files

  path = Path(run_dir) / STUDY
  if not path.exists():
    raise ValueError(f"{run_dir} is not a run: it has neither config.yaml nor {STUDY}")
  record = sealed_files.read_json(path)
  name = str(record.get("recipe"))
  file = trust.trusted_path(name) or names().get(name)
  if file is None:
    raise ValueError(
      f"{path} is of the recipe {name!r}, which no name finds; if it is a file that "
      f"you trust: xpo resume {run_dir} --trust PATH.py"
    )
  trust.refuse_foreign(record["settings"], "settings")
  recipe = _executed(file)
  kind = recipe.get(record["class"])
  if not isinstance(kind, type) or kind.__module__ != name:
    raise ValueError(
      f"{path}: class is {record['class']!r}, which {file} does not define; it must be "
      "the dataclass of the recipe's settings"
    )
  settings = yaml_file.from_dict(kind, record["settings"], "settings")
  return Recipe(settings, recipe["run"], recipe.get("arms"))


def study_record(settings: Any) -> dict[str, Any]:
  """Makes the content of study.json: recipe, class and settings of a study."""
  from xpo_jax.config import yaml_file

  kind = type(settings)
  return {
    "recipe": kind.__module__,
    "class": kind.__name__,
    "settings": yaml_file.to_dict(settings),
  }


def _executed(path: Path) -> dict[str, Any]:
  """Executes a recipe file and returns the names that it defines."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return vars(module)


def _arguments(recipe: str, make: Callable, given: Sequence[str]) -> dict[str, Any]:
  """The arguments of a recipe from words NAME=VALUE, of their annotated types."""
  wanted = inspect.signature(make).parameters
  for argument in given:
    if "=" not in argument:
      raise ValueError(
        f"recipe {recipe}: {argument!r} is no argument; write NAME=VALUE"
      )
  pairs = dict(argument.partition("=")[::2] for argument in given)
  unknown = sorted(set(pairs) - set(wanted))
  missing = [n for n, p in wanted.items() if p.default is p.empty and n not in pairs]
  takes = " ".join(f"{name}=..." for name in wanted) or "no arguments"
  if unknown:
    raise ValueError(f"recipe {recipe} has no argument {unknown[0]}; it takes {takes}")
  if missing:
    raise ValueError(f"recipe {recipe} needs {missing[0]}=...; it takes {takes}")
  hints = typing.get_type_hints(make)
  typed = {}
  for name, text in pairs.items():
    try:
      typed[name] = _typed(text, hints.get(name, str))
    except ValueError as error:
      raise ValueError(f"recipe {recipe}: {name} is {text!r}; {error}") from error
  return typed


def _typed(text: str, hint: Any) -> Any:
  """The value of a type that a text stands for: "false" of a bool, "1e-4" of a float,
  "a,b" of a tuple, "None" where None is allowed.

  Raises:
    ValueError: it stands for none; says which are allowed.
  """
  kinds = typing.get_args(hint)
  match typing.get_origin(hint) or hint:
    case typing.Union | types.UnionType:
      if text == "None" and types.NoneType in kinds:
        return None
      members = [kind for kind in kinds if kind is not types.NoneType]
      members.sort(key=lambda kind: kind is str)  # any text is a str
      for kind in members[:-1]:
        with contextlib.suppress(ValueError):
          return _typed(text, kind)
      return _typed(text, members[-1])
    case typing.Literal:
      values = {str(value): value for value in kinds}
      if text not in values:
        raise ValueError(f"allowed: {', '.join(values)}")
      return values[text]
    case builtins.tuple:
      return tuple(_typed(item, kinds[0]) for item in text.split(",") if item)
    case builtins.bool:
      if text.lower() not in ("true", "false"):
        raise ValueError("it must be true or false")
      return text.lower() == "true"
    case builtins.int | builtins.float as kind:
      try:
        return kind(text)
      except ValueError as error:
        number = "a whole number" if kind is int else "a number"
        raise ValueError(f"it must be {number}") from error
    case builtins.str:
      return text
  raise ValueError(f"a {hint} cannot be given from a shell")


def using(objective: str) -> tuple[str, ...]:
  """Lists the recipes that use an objective of the index."""
  use = re.compile(rf'ObjectiveConfig\(\s*"{objective}"')
  recipes = names().items()
  return tuple(name for name, path in recipes if use.search(path.read_text("utf-8")))


def required(recipe: str) -> tuple[str, ...]:
  """Lists the required arguments of a recipe, by name or path."""
  body = _parsed(path_of(recipe)).body
  functions = {n.name: n.args for n in body if isinstance(n, ast.FunctionDef)}
  arguments = functions["experiment"]
  names = [argument.arg for argument in arguments.args]
  defaults = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
  required_keywords = [argument.arg for argument, x in defaults if x is None]
  return (*names[: len(names) - len(arguments.defaults)], *required_keywords)


def summary(path: Path) -> str:
  """Reads the first line of a recipe's docstring, or reports its syntax error."""
  try:
    text = ast.get_docstring(_parsed(path)) or ""
  except ValueError as error:
    text = str(error)
  return text.partition("\n")[0]


def _defines_experiment(path: Path) -> bool:
  body = _parsed(path).body
  return any(isinstance(n, ast.FunctionDef) and n.name == "experiment" for n in body)


def _parsed(path: Path) -> ast.Module:
  stat = path.stat()
  return _parse(path, stat.st_mtime_ns, stat.st_size)


@functools.cache  # a name is looked up among all files
def _parse(path: Path, _mtime_ns: int, _size: int) -> ast.Module:
  try:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
  except SyntaxError as error:
    raise ValueError(f"{path}, line {error.lineno}: {error.msg}; mend it") from error
