"""Losses and gradients of public implementations, in float64, case by case.

`experiments/bench/mutate.py` tells which change of a formula which test notices.
"""

import ast
import functools
from pathlib import Path

import pytest

from tests import golden_adapters
from tests import golden_cases as golden
from tests.golden_adapters import exceptions

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
