"""Every public function says the types of what it takes and gives."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "xpo_jax"
# Still to be annotated; no name is added.
ABSENT = {
  "report.html.cell",
  "studies.demo.run",
  "studies.demo.show",
  "studies.sentiment.online.train",
  "studies.sentiment.train_methods.fine_tune",
  "studies.sentiment.train_methods.PairTrainer.runs",
  "train.step.scorer",
}


def _public(body: list[ast.stmt], owner: str = ""):
  """Public functions and methods with their names; nested functions are private."""
  for node in body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
      yield from _public(node.body, f"{owner}{node.name}.")
    elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
      yield f"{owner}{node.name}", node


def _complete(function: ast.FunctionDef) -> bool:
  given = function.args
  every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
  every += [one for one in (given.vararg, given.kwarg) if one is not None]
  typed = [one for one in every if one.annotation or one.arg in ("self", "cls")]
  return typed == every and function.returns is not None


def test_public_functions_are_annotated():
  bare = set()
  for path in PACKAGE.rglob("*.py"):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    functions = _public(ast.parse(path.read_text(encoding="utf-8")).body)
    bare |= {f"{module}.{name}" for name, one in functions if not _complete(one)}
  assert not bare - ABSENT
