"""Mutants of `experiments/bench/mutate.py`: what is changed, and what is left alone."""

import ast

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
