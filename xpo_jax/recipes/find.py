"""Recipes by name: files with a function `experiment() -> Experiment`.

They live in `experiments/` of the working directory or of the checkout, and in this
package. Listing them reads their text and imports nothing.
"""

import ast
import difflib
import importlib.util
from pathlib import Path

_HERE = Path(__file__).parent
_PLACES = (_HERE, _HERE.parent.parent / "experiments")


def names() -> dict[str, Path]:
  """Every recipe that a name finds; the working directory's come first."""
  found: dict[str, Path] = {}
  for place in (Path.cwd() / "experiments", *reversed(_PLACES)):
    for path in sorted(place.glob("*.py")):
      if _defines_experiment(path):
        found.setdefault(path.stem, path)
  return found


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


def load(recipe: str):
  """The experiment of a recipe, by name or path, or of a run's config.yaml.

  Returns:
    `train.experiment.Experiment`.

  Raises:
    ValueError: no such recipe, or its file has no `experiment()`.
  """
  if Path(recipe).name == "config.yaml":
    from xpo_jax.train import configure  # imports JAX, which listing must not

    return configure.read(Path(recipe).parent)[0]
  path = path_of(recipe)
  if not _defines_experiment(path):
    raise ValueError(f"{path} is not a recipe: it has no function experiment()")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.experiment()


def summary(path: Path) -> str:
  """First line of a recipe's docstring."""
  text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
  return text.partition("\n")[0]


def _defines_experiment(path: Path) -> bool:
  body = ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body
  return any(isinstance(n, ast.FunctionDef) and n.name == "experiment" for n in body)
