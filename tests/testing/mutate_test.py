"""Mutants of `experiments/bench/mutate.py`: what is changed, and what is left alone."""

import ast
import importlib.util

import pytest

from experiments.bench import mutate

CASES = {
  "a - b": {"a + b", "b - a", "a", "-b"},
  "a + b": {"a - b", "a", "b"},
  "-a_B": {"a_B"},
  "beta * x": {"beta", "x"},
  "loss / beta": {"loss"},
  "x ** 2": {"x"},
  "x > 0": {"x <= 0"},
  "x[:, 0]": {"x[:, 1]"},
  "jnp.maximum(z0, 0)": {"jnp.minimum(z0, 0)", "z0", "0"},
  "jnp.clip(x, low, high)": {"x"},
  "stop_gradient(x)": {"x"},
  "f(sg(value_B), ratio_B)": {
    "f(value_B, ratio_B)",
    "f(value_B, sg(ratio_B))",
  },
  "kl(p_logits_CV, q_logits_CV)": {"kl(q_logits_CV, p_logits_CV)"},
  "x.sum(1)": {"x.mean(1)"},
  "jax.nn.sigmoid(-m)": {
    "jax.nn.sigmoid(m)",
    "jax.nn.log_sigmoid(-m)",
  },
}


@pytest.mark.parametrize("expression", CASES)
def test_changes_of_an_expression(expression):
  found = mutate.mutants(f"def f():\n  return {expression}")
  returned = {ast.unparse(x.tree().body[0].body[0].value) for x in found}
  assert returned == CASES[expression]
  assert all(x.in_function and x.lines == (2, 2) for x in found)


@pytest.mark.parametrize(
  "statement",
  [
    "metrics = {'gap': a - b}",
    "metrics |= {'gap': a - b}",
    "if a > b:\n    raise ValueError(a - b)",
    "_hparams.check('x', 'beta', a - b)",
    "chex.assert_shape(x, (a - b,))",
    "return Objective(name='x', stats=a | b)",
    "return Loss({}, a | b)",
  ],
)
def test_metrics_checks_and_declarations_are_left_alone(statement):
  assert not mutate.mutants(f"def f(x: int | None = -beta):\n  {statement}")


def test_the_first_run_notes_every_statement_of_a_function():
  source = "def f(x):\n  if x:\n    y = 1\n  else:\n    y = 2\n  return y\nz = f(1)"
  tree = ast.fix_missing_locations(mutate.Note().visit(ast.parse(source)))
  lines = []
  exec(compile(tree, "f", "exec"), {"__executed__": lines.append})
  assert lines == [2, 3, 6]


SOURCE = """
def outer(scale):
  def inner(x):
    return scale * x
  return inner


def f(x, y):
  return x - y


g = f
double = outer(2)
"""


def _module(tmp_path):
  """An imported module, and its mutants by text."""
  path = tmp_path / "formula.py"
  path.write_text(SOURCE)
  spec = importlib.util.spec_from_file_location("formula", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module, str(path), {str(x): x for x in mutate.mutants(SOURCE)}


def test_functions_of_an_imported_module_get_the_code_of_a_mutant(tmp_path):
  module, path, mutants = _module(tmp_path)
  assert mutate.exchange(path, mutants["9: x - y  ->  y - x"])
  assert module.f(5, 2) == module.g(5, 2) == -3
  assert module.double(3) == 6


def test_function_that_loses_a_variable_of_its_closure_is_not_exchanged(tmp_path):
  module, path, mutants = _module(tmp_path)
  assert not mutate.exchange(path, mutants["4: scale * x  ->  x"])
  assert module.double(3) == 6


def test_one_case_of_each_theory_test_comes_first():
  (mutant,) = [x for x in mutate.mutants("def f(x):\n  return -x_B") if x.in_function]
  seconds = {"a[1]": 1.0, "a[2]": 2.0, "b[1]": 3.0, "c": 0.5}
  tests = {name: mutate.Test(s, {"f.py": [2]}) for name, s in seconds.items()}
  tests["elsewhere"] = mutate.Test(0.1, {"f.py": [7]})
  executed = mutate.Executed(tests, {})
  expected = ["c", "a[1]", "b[1]", "a[2]"]
  assert mutate.theory_tests("f.py", mutant, executed) == expected
