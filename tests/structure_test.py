"""The package is a stack of folders: imports point one way, no folder is crowded."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "xpo_jax"
# A folder or module may import from itself and from those before it, never after it.
ORDER = (
  "types",
  "ops",
  "scored",
  "objectives",
  "testing",
  "survey",
  "sharding",
  "data",
  "models",
  "feedback",
  "config",
  "train",
  "topology",
  "evaluation",
  "report",
  "studies",
  "cli",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def _imported(path: Path) -> set[str]:
  """Folders and root modules of the package that a file imports anything of."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.ImportFrom) and node.module == "xpo_jax":
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module.startswith("xpo_jax."):
      found.add(node.module.split(".")[1])
    elif isinstance(node, ast.Import):
      names = (alias.name.split(".") for alias in node.names)
      found |= {name[1] for name in names if name[0] == "xpo_jax" and len(name) > 1}
  return found


def test_every_folder_has_its_place():
  there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"}
  there |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
  assert there - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.parametrize(
  "path", FILES, ids=lambda path: str(path.relative_to(PACKAGE).with_suffix(""))
)
def test_imports_point_one_way(path):
  place = path.relative_to(PACKAGE).with_suffix("").parts[0]
  if place.startswith("__"):
    return
  allowed = ORDER[: ORDER.index(place) + 1]
  assert not _imported(path) - set(allowed)


@pytest.mark.parametrize("folder", sorted(PACKAGE.glob("*/__init__.py")), ids=str)
def test_folder_is_small_and_says_what_it_is_for(folder):
  text = ast.get_docstring(ast.parse(folder.read_text(encoding="utf-8")))
  assert text and len(text.splitlines()) > 1
  if folder.parent.name != "objectives":
    assert len(list(folder.parent.glob("*.py"))) - 1 <= 20
