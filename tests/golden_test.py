"""Losses and gradients of public implementations, in float64, case by case.

A mutation test checks that the cases can fail: flipping any one sign in an objective's
formula makes its cases fail.
"""

import ast
import functools
import importlib
import itertools
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import golden_adapters
from tests import golden_cases as golden
from tests.golden_adapters import exceptions
from xpo_jax import objectives

committed = pytest.mark.skipif(
  not golden.IS_COMMITTED, reason="about the committed cases; XPO_GOLDEN names others"
)


@functools.cache
def _of_method(method: str) -> dict[str, tuple[dict, dict]]:
  names = [name for name in golden.COMPARED if golden.CASES[name]["method"] == method]
  return dict(zip(names, golden.compute(names), strict=True))


@pytest.mark.nonfinite  # some rewards are NaN on purpose
@pytest.mark.parametrize("name", golden.COMPARED)
def test_case_matches_public_implementation(name):
  golden.compare(golden.CASES[name], *_of_method(golden.CASES[name]["method"])[name])


def test_every_method_has_an_adapter():
  methods = {case["method"] for case in golden.CASES.values()}
  assert golden.CASES, f"no golden cases in {golden.FOLDER}"
  assert methods <= set(golden_adapters.ADAPTERS), "methods without an adapter"


@committed
def test_every_adapter_has_a_case():
  methods = {case["method"] for case in golden.CASES.values()}
  assert set(golden_adapters.ADAPTERS) <= methods


@committed
def test_exceptions_are_few_and_no_methods_only_case():
  table = exceptions.CASES
  assert set(table) <= set(golden.CASES), "no such case"
  assert len(table) < 0.12 * len(golden.CASES)
  left = {golden.CASES[name]["method"] for name in golden.COMPARED}
  for case, why in table.items():
    method = golden.CASES[case]["method"]
    assert method in left or "bug" in why, f"{case} is the only case of {method}"
  for method, values in exceptions.VALUES.items():
    cases = [case for case in golden.CASES.values() if case["method"] == method]
    assert all(any(v in case["expected"] for case in cases) for v in values), method


def test_adapters_hold_no_arithmetic():
  """They rearrange arrays; all computation is the package's."""
  sums = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.MatMult, ast.Mod)
  for path in Path(golden_adapters.__file__).parent.glob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      assert not (isinstance(node, ast.BinOp) and isinstance(node.op, sums)), (
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
      )


class _Flip(ast.NodeTransformer):
  """Flips the n-th sign of an objective's formula; metrics are excluded."""

  def __init__(self, n: int, file: str):
    self.n, self.seen, self.inside = n, 0, False
    self.factory = file.removeprefix("_")
    self.parts = {name for name, home in objectives.HOME.items() if home == file}

  def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
    # The body of a factory checks hyperparameters; the formula is in its nested
    # functions and in public parts.
    outer, own = self.inside, node.name == self.factory
    self.inside = not own and (self.inside or node.name in self.parts)
    node.body = [self._nested(one) if own else self.visit(one) for one in node.body]
    self.inside = outer
    return node

  def _nested(self, node: ast.stmt) -> ast.stmt:
    self.inside = isinstance(node, ast.FunctionDef)
    if self.inside:
      node.body = [self.visit(one) for one in node.body]
    self.inside = False
    return node

  def visit_Assign(self, node: ast.Assign) -> ast.AST:
    if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "metrics":
      return node
    return self.generic_visit(node)

  def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
    if isinstance(node.target, ast.Name) and node.target.id == "metrics":
      return node
    return self.generic_visit(node)

  def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
    return node  # x[:, -1]: a sign of an index

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
  flip = _Flip(n, file)
  tree = ast.fix_missing_locations(flip.visit(ast.parse(path.read_text())))
  if flip.seen <= n:
    return None
  module = types.ModuleType(f"xpo_jax.objectives.{file}_flipped")
  exec(compile(tree, str(path), "exec"), vars(module))
  return module


def _most_active_cases(method: str) -> list[str]:
  """The method's two cases with the most nonzero hyperparameters."""
  own = [name for name in golden.COMPARED if golden.CASES[name]["method"] == method]

  def active(name: str) -> int:
    numbers = [
      *golden.CASES[name]["hyperparams"].values(),
      *golden.CASES[name]["inputs"].values(),
    ]
    return sum(isinstance(x, float) and x != 0 for x in numbers)

  return sorted(own, key=active, reverse=True)[:2]


def _check_of(name: str) -> Callable[[], None]:
  """A check that fails for a wrong formula: the golden cases, or the test's oracle."""
  methods = [
    m for m, (_, files) in golden_adapters.ADAPTERS.items() if f"_{name}" in files
  ]
  if not methods:
    return importlib.import_module(f"tests.objectives.{name}_test").check
  cases = [case for method in methods for case in _most_active_cases(method)]

  def check() -> None:
    for gradients in (
      False,
      True,
    ):  # most flips change a value: no need to compile both
      results = golden.compute(cases, gradients=gradients)
      for case, result in zip(cases, results, strict=True):
        golden.compare(golden.CASES[case], *result)

  return check


@committed
@pytest.mark.nonfinite
@pytest.mark.parametrize("name", objectives.NAMES)
def test_any_flipped_sign_fails(name, monkeypatch):
  file, check = f"_{name}", _check_of(name)
  check()
  for n in itertools.count():
    module = _flipped(file, n)
    if module is None:
      break
    for attribute in [k for k, home in objectives.HOME.items() if home == file]:
      monkeypatch.setattr(objectives, attribute, vars(module)[attribute], raising=False)
    with pytest.raises(AssertionError):
      check()
      pytest.fail(
        f"sign {n} of {file} can be flipped without a failing test", pytrace=False
      )
