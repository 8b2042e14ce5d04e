"""Every objective stands in a test of this folder.

Read from the syntax of the tests: a name counts where a test, or a helper, constant or
fixture that the test reaches, takes the factory (`objectives.NAME`), builds it by name
(`objectives.build`, `objectives.get`) or has the name as a parameter. Names in
comments, in texts and in code that no test reaches do not count.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from xpo_jax import objectives

_BY_NAME = ("objectives.build", "objectives.get")


def _strings(node: ast.AST) -> set[str]:
  return {
    x.value
    for x in ast.walk(node)
    if isinstance(x, ast.Constant) and isinstance(x.value, str)
  }


def _named(node: ast.AST) -> Iterator[str]:
  """Names of objectives in a definition."""
  texts = [*getattr(node, "decorator_list", [])]
  if isinstance(node, ast.Assign):
    texts.append(node)
  for x in ast.walk(node):
    if isinstance(x, ast.Attribute) and ast.unparse(x.value) == "objectives":
      yield x.attr
    if isinstance(x, ast.Call) and ast.unparse(x.func) in _BY_NAME:
      literal = isinstance(x.args[0], ast.Constant)
      texts.append(x.args[0] if literal else node)
  for text in texts:
    yield from _strings(text)


def objectives_in_tests(source: str) -> dict[str, set[str]]:
  """Names of objectives that each test of a module reaches."""
  definitions: dict[str, ast.AST] = {}
  for node in ast.parse(source).body:
    if isinstance(node, ast.FunctionDef):
      definitions[node.name] = node
    elif isinstance(node, ast.Assign):
      for target in node.targets:
        for name in ast.walk(target):
          if isinstance(name, ast.Name):
            definitions[name.id] = node

  def reached(name: str, seen: set[str]) -> set[str]:
    seen.add(name)
    node = definitions[name]
    found = set(_named(node))
    used = {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}
    if isinstance(node, ast.FunctionDef):
      used |= {x.arg for x in node.args.args}  # fixtures
    for other in (used & set(definitions)) - seen:
      found |= reached(other, seen)
    return found

  names = set(objectives.NAMES)
  tests = (name for name in definitions if name.startswith("test_"))
  return {test: reached(test, set()) & names for test in tests}


@pytest.fixture(scope="module")
def in_tests():
  files = sorted(Path(__file__).parent.glob("*_test.py"))
  return {
    f"{file.name}::{test}": names
    for file in files
    if file != Path(__file__)
    for test, names in objectives_in_tests(file.read_text()).items()
  }


@pytest.mark.parametrize("name", objectives.NAMES)
def test_objective_stands_in_a_theory_test(in_tests, name):
  assert any(name in names for names in in_tests.values()), (
    f"no test in tests/theory takes {name}; state a property of its paper (a closed "
    "form, an optimum, a gradient, a limit) in a test there"
  )


SOURCE = '''
"""Mentions objectives.ipo."""
OPTIMA = {"simpo": 1}
WEIGHTS = {"cpo": 1}

def helper():
  return objectives.dpo(0.1)

def unused():
  return objectives.slic()

@pytest.mark.parametrize("name", ["orpo", "not an objective"])
def test_one(name, optima):  # objectives.rso
  """objectives.exo"""
  assert helper() == objectives.build("kto").terms["nca"]

def test_two():
  for name in ("dro", "npo"):
    objectives.get(name)

@pytest.fixture
def optima():
  return OPTIMA
'''


def test_only_what_a_test_reaches_counts():
  reached = {"test_one": {"orpo", "dpo", "kto", "simpo"}, "test_two": {"dro", "npo"}}
  assert objectives_in_tests(SOURCE) == reached
