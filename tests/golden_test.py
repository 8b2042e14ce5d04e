"""Losses and gradients of public implementations, in float64, case by case.

And the proof that these can fail: with any one sign of an objective's maths turned
around, its goldens do.
"""

import ast
import functools
import itertools
import types
from pathlib import Path

import pytest

from tests import golden_adapters
from tests import golden_cases as golden
from xpo_jax import objectives


@functools.cache
def _of_method(method: str) -> dict[str, tuple[dict, dict]]:
  names = [name for name in golden.OWED if golden.CASES[name]["method"] == method]
  return dict(zip(names, golden.compute(names), strict=True))


@pytest.mark.parametrize("name", golden.OWED)
def test_case_matches_public_implementation(name):
  golden.compare(golden.CASES[name], *_of_method(golden.CASES[name]["method"])[name])


def test_every_method_is_accounted_for():
  found = {case["method"] for case in golden.CASES.values()}
  assert golden.CASES, f"no golden cases in {golden.FOLDER}"
  assert found - golden.NOT_YET_BUILT - set(golden_adapters.ADAPTERS) == set(), (
    "unknown methods"
  )
  assert golden.NOT_YET_BUILT & set(golden_adapters.ADAPTERS) == set(), (
    "built, so take them off the list"
  )


def test_every_objective_is_guarded():
  guarded = {file for _, files in golden_adapters.ADAPTERS.values() for file in files}
  assert guarded == {f"_{name}" for name in objectives.NAMES}
  missing = set(golden_adapters.ADAPTERS) - {
    case["method"] for case in golden.CASES.values()
  }
  assert golden.FOLDER != Path(__file__).with_name("golden") or not missing


class _Flip(ast.NodeTransformer):
  """Turns the n-th sign of an objective's maths around, its metrics left out."""

  FUNCTIONS = ("loss", "beta_dpo_coupling")

  def __init__(self, n: int):
    self.n, self.seen, self.inside = n, 0, False

  def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
    outer, self.inside = self.inside, self.inside or node.name in self.FUNCTIONS
    self.generic_visit(node)
    self.inside = outer
    return node

  def visit_Assign(self, node: ast.Assign) -> ast.AST:
    if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "metrics":
      return node
    return self.generic_visit(node)

  def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
    self.generic_visit(node)
    other = {ast.Add: ast.Sub, ast.Sub: ast.Add}.get(type(node.op))
    if other and self._is_mine():
      node.op = other()
    return node

  def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
    self.generic_visit(node)
    if isinstance(node.op, ast.USub) and self._is_mine():
      node.op = ast.UAdd()
    return node

  def _is_mine(self) -> bool:
    if not self.inside:
      return False
    self.seen += 1
    return self.seen - 1 == self.n


def _flipped(file: str, n: int) -> types.ModuleType | None:
  """The objective's module with its n-th sign flipped; None past the last one."""
  path = Path(objectives.__file__).with_name(f"{file}.py")
  flip = _Flip(n)
  tree = ast.fix_missing_locations(flip.visit(ast.parse(path.read_text())))
  if flip.seen <= n:
    return None
  module = types.ModuleType(f"xpo_jax.objectives.{file}_flipped")
  exec(compile(tree, str(path), "exec"), vars(module))
  return module


def _telling(method: str) -> list[str]:
  """The method's two cases in which the most knobs are not zero."""
  own = [name for name in golden.OWED if golden.CASES[name]["method"] == method]

  def active(name: str) -> int:
    numbers = [
      *golden.CASES[name]["hyperparams"].values(),
      *golden.CASES[name]["inputs"].values(),
    ]
    return sum(isinstance(x, float) and x != 0 for x in numbers)

  return sorted(own, key=active, reverse=True)[:2]


@pytest.mark.parametrize("name", objectives.NAMES)
def test_any_flipped_sign_fails_its_goldens(name, monkeypatch):
  file = f"_{name}"
  methods = [
    method for method, (_, files) in golden_adapters.ADAPTERS.items() if file in files
  ]
  cases = [case for method in methods for case in _telling(method)]
  for n in itertools.count():
    module = _flipped(file, n)
    if module is None:
      break
    for attribute in [k for k, home in objectives.HOME.items() if home == file]:
      monkeypatch.setattr(objectives, attribute, vars(module)[attribute], raising=False)
    results = golden.compute(cases)
    with pytest.raises(AssertionError):
      for case, result in zip(cases, results, strict=True):
        golden.compare(golden.CASES[case], *result)
  assert n, f"{file} has no sign to flip"
