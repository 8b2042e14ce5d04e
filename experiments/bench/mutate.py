"""Mutates the formulas of `objectives/` and `ops/` and tabulates which test notices.

    python experiments/bench/mutate.py --sample 5 --seed 0
    python experiments/bench/mutate.py --only xpo_jax/ops/returns.py

A mutant is one file with one change: see `MUTATIONS`. Not mutated: metrics (functions
named so or called "a metric"), checks of arguments, declarations (`Objective(...)`),
annotations, texts. A mutant is

- killed by theory: a test of `tests/theory/` fails,
- killed by a unit test only: those pass, a test of the file's own unit tests fails,
- a survivor: all of them pass.

A first run of the theory tests notes which statements each one executes. A mutant meets
the tests that execute its statement (those that execute its file, where the statement
runs at import), one case of each test first, the fastest first, then the unit tests,
until one fails. Where the theory tests take more than `LIMIT` CPU seconds, the unit
tests follow and the outcome says that theory was cut. Unit tests are
`tests/FOLDER/NAME_test.py`, or those of the folder that mention the name where there is
no such file; those of the folders below that mention it; those of the files of the
folder that import it; then the conformance tests of the objective.

Every mutant is a fork of one process that has collected the tests and has started no
backend; the code of the functions that the mutant changes is exchanged in it. A mutant
of a statement that runs at import is a fork that has not imported this package.
Compiled programs are shared through a cache of its own, keyed by the program itself: a
mutant whose program differs cannot read the original's.

Needs no accelerator; a few seconds a mutant.
"""

import argparse
import ast
import collections
import copy
import gc
import hashlib
import importlib.machinery
import importlib.util
import itertools
import json
import os
import random
import re
import resource
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parent.parent.parent
WORK = REPOSITORY / ".cache" / "mutate"
sys.path.insert(0, str(REPOSITORY))

TARGETS = ("xpo_jax/objectives", "xpo_jax/ops")
THEORY = "tests/theory"
CONFORMANCE = "tests/objectives/conformance_test.py"
SKIPPED = ("__init__.py", "_hparams.py")  # index and checks of arguments: no formula
LIMIT = 150  # CPU seconds of a mutant's theory tests, and of its unit tests
OUT_OF_TIME, IMPOSSIBLE = -signal.SIGXCPU, 71  # exit codes of forks


# --- Mutations ---------------------------------------------------------------------


def _call(node: ast.AST) -> str:
  """Name of the called function, without its module; "" if it is not a call."""
  if not isinstance(node, ast.Call):
    return ""
  return ast.unparse(node.func).rpartition(".")[2]


def _renamed(node: ast.Call, name: str) -> ast.Call:
  new = copy.copy(node)
  if isinstance(node.func, ast.Attribute):
    new.func = ast.Attribute(node.func.value, name, ast.Load())
  else:
    new.func = ast.Name(name, ast.Load())
  return new


def _negated(node: ast.expr) -> ast.expr:
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    return node.operand
  return ast.UnaryOp(ast.USub(), node)


def _is_array(node: ast.expr) -> bool:
  """Whether a shape suffix says so."""
  return (
    ast.unparse(node).split("[")[0].rpartition("_")[2].strip("0123456789)").isupper()
  )


def sums(node: ast.AST) -> Iterator[ast.expr]:
  """Flips the sign of a term, swaps a subtraction, drops a term."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
    add = isinstance(node.op, ast.Add)
    yield ast.BinOp(node.left, ast.Sub() if add else ast.Add(), node.right)
    if not add:
      yield ast.BinOp(node.right, ast.Sub(), node.left)
    yield node.left
    yield node.right if add else _negated(node.right)
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    if not isinstance(node.operand, ast.Constant) and "inf" not in ast.unparse(node):
      yield node.operand


def products(node: ast.AST) -> Iterator[ast.expr]:
  """Drops a factor, a divisor or a power."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
    yield node.left
    yield node.right
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Pow):
    yield node.left


def unions(node: ast.AST) -> Iterator[ast.expr]:
  """Drops a part of a union or an intersection, or takes the other of the two."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
    yield node.left
    yield node.right
    if isinstance(node.op, ast.BitAnd):
      yield ast.BinOp(node.left, ast.BitOr(), node.right)
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
    yield node.operand


_STOPS = ("stop_gradient", "sg")


def stop_gradients(node: ast.AST) -> Iterator[ast.expr]:
  """Removes a stop_gradient, or moves it to the other operand or argument."""
  if _call(node) in _STOPS:
    yield node.args[0]
  fields = ()
  if isinstance(node, ast.BinOp):
    fields = ("left", "right")
    parts = [node.left, node.right]
  elif isinstance(node, ast.Call):
    parts = node.args
  else:
    return
  for i, part in enumerate(parts):
    for j, other in enumerate(parts):
      if i == j or _call(part) not in _STOPS or _call(other) in _STOPS:
        continue
      if not _is_array(other):
        continue
      new = list(parts)
      new[i], new[j] = part.args[0], ast.Call(part.func, [other], [])
      moved = copy.copy(node)
      if fields:
        moved.left, moved.right = new
      else:
        moved.args = new
      yield moved


_OPPOSITE = {
  "minimum": "maximum",
  "min": "max",
  "argmin": "argmax",
  "sum": "mean",
  "cumsum": "cumprod",
  "any": "all",
  "sum_T": "mean_T",
  "first": "last",
  "seq_logp": "avg_logp",
  "log_sigmoid": "sigmoid",
}
_OPPOSITE |= {value: key for key, value in _OPPOSITE.items()}


def opposites(node: ast.AST) -> Iterator[ast.expr]:
  """Exchanges min and max, sum and mean, first and last, any and all."""
  if (name := _call(node)) in _OPPOSITE:
    yield _renamed(node, _OPPOSITE[name])


def clamps(node: ast.AST) -> Iterator[ast.expr]:
  """Removes a clamp, a rectifier, a length normalisation, a flooring."""
  name = _call(node)
  if name in ("maximum", "minimum"):
    yield from node.args
  if name in ("clip", "relu", "per_token", "floor", "abs", "_at_least_1", "sqrt"):
    yield node.args[0]


_ODD = ("sigmoid", "log_sigmoid", "softplus", "logistic", "exp", "exponential", "expm1")


def arguments(node: ast.AST) -> Iterator[ast.expr]:
  """Negates the argument of a link; exchanges two arguments of one kind."""
  if _call(node) in _ODD:
    new = copy.copy(node)
    new.args = [_negated(node.args[0]), *node.args[1:]]
    yield new
  if isinstance(node, ast.Call) and len(node.args) >= 2:
    first, second = node.args[:2]
    alike = ast.unparse(first), ast.unparse(second)
    kinds = [text.split("[")[0].rpartition("_")[2] for text in alike]
    skip = ("maximum", "minimum", "logaddexp", "where", "broadcast_to", "choice")
    masks = ("mask", "population", "present", "weight")
    plain = all(
      isinstance(x, ast.Name | ast.Attribute | ast.Subscript) for x in (first, second)
    )
    if any(text.rpartition(".")[2].startswith(masks) for text in alike):
      return
    if plain and kinds[0] == kinds[1] and alike[0] != alike[1]:
      if _call(node) not in skip:
        new = copy.copy(node)
        new.args = [second, first, *node.args[2:]]
        yield new


_NEGATION = {
  ast.Lt: ast.GtE,
  ast.GtE: ast.Lt,
  ast.Gt: ast.LtE,
  ast.LtE: ast.Gt,
  ast.Eq: ast.NotEq,
  ast.NotEq: ast.Eq,
}


def comparisons(node: ast.AST) -> Iterator[ast.expr]:
  """Negates a comparison; exchanges the branches of another condition."""
  if isinstance(node, ast.Compare) and type(node.ops[0]) in _NEGATION:
    if len(node.ops) == 1:
      new = copy.copy(node)
      new.ops = [_NEGATION[type(node.ops[0])]()]
      yield new
  if _call(node) == "where" and len(node.args) == 3:
    if not isinstance(node.args[0], ast.Compare):
      new = copy.copy(node)
      new.args = [node.args[0], node.args[2], node.args[1]]
      yield new


def columns(node: ast.AST) -> Iterator[ast.expr]:
  """Reads the other column of a pair."""
  if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
    *rest, last = node.slice.elts
    if isinstance(last, ast.Constant) and last.value in (0, 1):
      new = copy.copy(node)
      new.slice = ast.Tuple([*rest, ast.Constant(1 - last.value)], ast.Load())
      yield new


MUTATIONS: tuple[Callable[[ast.AST], Iterator[ast.expr]], ...] = (
  sums,
  products,
  unions,
  stop_gradients,
  opposites,
  clamps,
  arguments,
  comparisons,
  columns,
)


class Mutant(NamedTuple):
  """One change of one file.

  Attributes:
    lines: first and last line of the statement.
    in_function: whether the statement runs when a function is called, not at import.
    module: the file.
    before: the expression, a node of the module.
    after: what it becomes.
  """

  lines: tuple[int, int]
  in_function: bool
  module: ast.Module
  before: ast.expr
  after: ast.expr

  def __str__(self) -> str:
    texts = ast.unparse(self.before), ast.unparse(self.after)
    return f"{self.lines[0]}: {texts[0]}  ->  {texts[1]}"

  def tree(self) -> ast.Module:
    """The changed module."""
    return ast.fix_missing_locations(_changed(self.module, self.before, self.after))


_DECLARATIONS = ("Objective", "_replace", "check", "check_hparams", "check_key",
                 "choice", "check_optional_beta", "namedtuple", "TypeVar")  # fmt: skip


def _skipped(node: ast.AST) -> bool:
  """Whether nothing below the node is mutated."""
  if isinstance(node, ast.Raise | ast.JoinedStr | ast.arguments):
    return True
  if isinstance(node, ast.FunctionDef | ast.ClassDef):
    return node.name.endswith("metrics") or "a metric" in (
      ast.get_docstring(node) or ""
    )
  if isinstance(node, ast.If):
    return any(isinstance(x, ast.Raise) for x in node.body)
  if isinstance(node, ast.Assign | ast.AugAssign):
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(ast.unparse(x).endswith("metrics") for x in targets)
  if isinstance(node, ast.keyword):
    return node.arg == "metrics"
  if isinstance(node, ast.Call):
    return _call(node) in _DECLARATIONS or ast.unparse(node.func).startswith("chex.")
  return False


def _places(module: ast.Module) -> Iterator[tuple[ast.stmt, bool, ast.expr]]:
  """Statement, whether it is in a function, and expression of every place to mutate."""

  def visit(node: ast.AST, statement: ast.stmt | None, inside: bool) -> Iterator:
    if _skipped(node):
      return
    if isinstance(node, ast.expr) and statement is not None:
      yield statement, inside, node
    for field, value in ast.iter_fields(node):
      if field in ("annotation", "returns", "decorator_list", "op", "ctx"):
        continue
      for child in value if isinstance(value, list) else [value]:
        if not isinstance(child, ast.AST):
          continue
        if isinstance(node, ast.Call) and _call(node) == "Loss" and child in node.args:
          if node.args.index(child) == 1:
            continue  # the metrics
        compound = isinstance(child, ast.FunctionDef | ast.ClassDef)
        own = child if isinstance(child, ast.stmt) and not compound else statement
        deeper = inside or isinstance(child, ast.FunctionDef)
        yield from visit(child, own, deeper)

  yield from visit(module, None, False)


class _Replace(ast.NodeTransformer):
  def __init__(self, old: ast.expr, new: ast.expr):
    self.old, self.new = old, new

  def visit(self, node: ast.AST) -> ast.AST:
    return self.new if node is self.old else self.generic_visit(node)


def _changed(root: Any, before: ast.expr, after: ast.expr) -> Any:
  """A copy of a tree in which one node is another."""
  copies: dict[int, Any] = {}
  tree = copy.deepcopy(root, copies)
  return _Replace(copies[id(before)], copy.deepcopy(after)).visit(tree)


def mutants(source: str) -> list[Mutant]:
  """All mutants of a module, in the order of its lines; equal ones once."""
  module = ast.parse(source)
  found = []
  seen = {(x.lineno, ast.unparse(x)) for x, _, _ in _places(module)}
  for statement, inside, before in _places(module):
    lines = (statement.lineno, statement.end_lineno or statement.lineno)
    for mutation in MUTATIONS:
      for after in mutation(before):
        text = (statement.lineno, ast.unparse(_changed(statement, before, after)))
        if text not in seen:
          seen.add(text)
          found.append(Mutant(lines, inside, module, before, after))
  return found


# --- Modules from changed trees ----------------------------------------------------


class _Loader(importlib.machinery.SourceFileLoader):
  def __init__(self, name: str, path: str, tree: ast.Module):
    super().__init__(name, path)
    self._tree = tree

  def get_code(self, fullname: str) -> Any:
    return compile(self._tree, self.path, "exec")


class Finder:
  """Loads modules, by dotted name, from trees in place of their files."""

  def __init__(self, trees: Mapping[str, ast.Module]):
    self._trees = trees

  def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
    del path, target
    if name not in self._trees:
      return None
    file = str(REPOSITORY / (name.replace(".", "/") + ".py"))
    loader = _Loader(name, file, self._trees[name])
    return importlib.util.spec_from_file_location(name, file, loader=loader)


def _module_name(file: str) -> str:
  return file.removesuffix(".py").replace("/", ".")


class Note(ast.NodeTransformer):
  """Calls `__executed__(line)` before every statement of every function."""

  def __init__(self) -> None:
    self.inside = False

  def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
    outer, self.inside = self.inside, True
    self.generic_visit(node)
    self.inside = outer
    return node

  def generic_visit(self, node: ast.AST) -> ast.AST:
    super().generic_visit(node)
    for field in ("body", "orelse"):
      block = getattr(node, field, None)
      if self.inside and isinstance(block, list):
        setattr(node, field, [new for x in block for new in (self.note(x), x)])
    return node

  @staticmethod
  def note(statement: ast.stmt) -> ast.Expr:
    line = ast.Constant(statement.lineno)
    call = ast.Call(ast.Name("__executed__", ast.Load()), [line], [])
    return ast.copy_location(ast.Expr(call), statement)


# --- Runs of the tests -------------------------------------------------------------


class Test(NamedTuple):
  """What the first run notes of a test.

  Attributes:
    seconds: of its run.
    lines: executed by it and by the import of its file; lists of numbers by file.
  """

  seconds: float
  lines: dict[str, list[int]]


class Executed(NamedTuple):
  """What the first run notes.

  Attributes:
    tests: by id.
    imports: lines that the imports of the test files and of the package execute.
  """

  tests: dict[str, Test]
  imports: dict[str, set[int]]


class _Recorder:
  """Pytest plugin: the lines that each test, and the import of its file, execute."""

  def __init__(self) -> None:
    self.tests: dict[str, Test] = {}
    self.failed: list[str] = []
    self.executed: dict[str, set[int]] = collections.defaultdict(set)
    self.of_modules: dict[str, dict[str, set[int]]] = {}

  def note(self, file: str) -> Callable[[int], None]:
    return lambda line: self.executed[file].add(line)

  def pytest_collectstart(self, collector: Any) -> None:
    del collector
    self.executed.clear()

  def pytest_collectreport(self, report: Any) -> None:
    if report.nodeid.endswith(".py"):
      lines = {file: set(x) for file, x in self.executed.items()}
      self.of_modules[report.nodeid] = lines

  def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
    del nodeid, location
    self.executed.clear()
    self.start = time.perf_counter()

  def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
    del location
    lines: dict[str, set[int]] = collections.defaultdict(set)
    for part in (self.executed, self.of_modules.get(nodeid.split("::")[0], {})):
      for file, numbers in part.items():
        lines[file] |= numbers
    seconds = time.perf_counter() - self.start
    self.tests[nodeid] = Test(seconds, {f: sorted(x) for f, x in lines.items()})

  def pytest_runtest_logreport(self, report: Any) -> None:
    if report.failed:
      self.failed.append(report.nodeid)


def _pytest(arguments: Sequence[str], plugin: object) -> int:
  import pytest

  options = ["-q", "-p", "no:cacheprovider", "--no-header"]
  os.chdir(REPOSITORY)
  return int(pytest.main([*options, *arguments], plugins=[plugin]))


def _forked(work: Callable[[], int], seconds: int | None) -> int:
  """Exit code of `work` in a fork, its output discarded; a limit on its CPU seconds."""
  child = os.fork()
  if child == 0:
    try:
      if seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
      quiet = os.open(os.devnull, os.O_WRONLY)
      os.dup2(quiet, 1)
      os.dup2(quiet, 2)
      os._exit(work())
    except BaseException:
      os._exit(70)
  _, status = os.waitpid(child, 0)
  return os.waitstatus_to_exitcode(status)


def targets() -> list[str]:
  """Files that are mutated, relative to the repository."""
  files = [file for folder in TARGETS for file in (REPOSITORY / folder).glob("*.py")]
  return sorted(
    str(file.relative_to(REPOSITORY)) for file in files if file.name not in SKIPPED
  )


def _digests() -> dict[str, str]:
  """Of each file of theory tests, with all that its run depends on."""
  whole = hashlib.sha256()
  package = sorted((REPOSITORY / "xpo_jax").rglob("*.py"))
  for file in [*package, REPOSITORY / THEORY / "conftest.py"]:
    whole.update(str(file.relative_to(REPOSITORY)).encode() + file.read_bytes())
  digests = {}
  for file in sorted((REPOSITORY / THEORY).glob("*_test.py")):
    own = whole.copy()
    own.update(file.read_bytes())
    digests[str(file.relative_to(REPOSITORY))] = own.hexdigest()
  return digests


def first_run() -> Executed:
  """The lines that each theory test executes; only files that changed are run again.

  Raises:
    RuntimeError: the run did not end.
  """
  WORK.mkdir(parents=True, exist_ok=True)
  stored = WORK / "executed.json"
  digests = _digests()
  old = json.loads(stored.read_text()) if stored.exists() else {}
  known = {f: x for f, x in old.items() if x["digest"] == digests.get(f)}
  stale = [file for file in digests if file not in known]

  def work() -> int:
    import builtins

    recorder = _Recorder()
    trees = {}
    for file in targets():
      tree = Note().visit(ast.parse((REPOSITORY / file).read_text()))
      trees[_module_name(file)] = ast.fix_missing_locations(tree)
    notes = {str(REPOSITORY / file): recorder.note(file) for file in targets()}

    def executed(line: int) -> None:
      notes[sys._getframe(1).f_code.co_filename](line)

    builtins.__executed__ = executed
    sys.meta_path.insert(0, Finder(trees))
    _pytest(stale, recorder)
    for file in stale:
      imports = {f: sorted(x) for f, x in recorder.of_modules.get(file, {}).items()}
      known[file] = {"digest": digests[file], "tests": {}, "imports": imports}
    for nodeid, test in recorder.tests.items():
      # A test that fails by itself, or reads the sources that this run changes.
      if nodeid not in recorder.failed:
        known[nodeid.split("::")[0]]["tests"][nodeid] = test
    stored.write_text(json.dumps(known))
    return 0

  if stale:
    code = _forked(work, 3600)
    if code != 0:
      raise RuntimeError(f"the theory tests could not be run: exit code {code}")
    known = json.loads(stored.read_text())
  tests = {k: Test(*v) for x in known.values() for k, v in x["tests"].items()}
  imports: dict[str, set[int]] = collections.defaultdict(set)
  for noted in known.values():
    for file, lines in noted["imports"].items():
      imports[file].update(lines)
  return Executed(dict(sorted(tests.items())), imports)


class Outcome(NamedTuple):
  """How a mutant ended.

  Attributes:
    kind: "theory", "unit" or "survived".
    test: the one that failed, or that was running when the process died.
    cut: whether the theory tests reached `LIMIT`.
  """

  kind: str
  test: str
  cut: bool


def name_of(file: str) -> str:
  """Name of an objective or a module of operations."""
  return Path(file).stem.removeprefix("_")


def unit_tests(file: str) -> list[str]:
  """Files of the unit tests of a file; see the module's docstring."""
  folder = REPOSITORY / "tests" / Path(file).parent.name
  own = folder / f"{name_of(file)}_test.py"
  found = [own]
  named = re.compile(rf"\b{name_of(file)}\b")
  if not own.exists():
    found = [x for x in sorted(folder.glob("*_test.py")) if named.search(x.read_text())]
  found += [
    x for x in sorted(folder.glob("*/*_test.py")) if named.search(x.read_text())
  ]
  imports = re.compile(rf"import .*\b{Path(file).stem}\b")
  for user in sorted((REPOSITORY / file).parent.glob("*.py")):
    if imports.search(user.read_text()):
      found.append(folder / f"{name_of(str(user))}_test.py")
  names = [str(x.relative_to(REPOSITORY)) for x in found if x.exists()]
  return list(dict.fromkeys([*names, *[CONFORMANCE] * ("objectives" in file)]))


def theory_tests(file: str, mutant: Mutant, executed: Executed) -> list[str]:
  """Those that execute a mutant, the fastest first, in turns of a case of each test."""
  low, high = mutant.lines
  found: dict[str, list[str]] = collections.defaultdict(list)
  for nodeid, test in sorted(executed.tests.items(), key=lambda x: x[1].seconds):
    lines = test.lines.get(file, [])
    if any(low <= x <= high for x in lines) if mutant.in_function else lines:
      found[nodeid.partition("[")[0]].append(nodeid)
  turns = itertools.zip_longest(*found.values())
  return [nodeid for turn in turns for nodeid in turn if nodeid]


def _codes(tree: ast.Module, path: str) -> list[types.CodeType]:
  """Code of every function of a module, in the order in which they are defined."""
  found: list[types.CodeType] = []

  def walk(code: types.CodeType) -> None:
    for constant in code.co_consts:
      if isinstance(constant, types.CodeType):
        found.append(constant)
        walk(constant)

  walk(compile(tree, path, "exec", dont_inherit=True))
  return found


def exchange(path: str, mutant: Mutant) -> bool:
  """Gives the functions of an imported module the mutant's code; False: impossible."""
  old, new = _codes(mutant.module, path), _codes(mutant.tree(), path)
  if len(old) != len(new):
    return False
  changed = [(x, y) for x, y in zip(old, new, strict=True) if x != y]
  done = 0
  for function in gc.get_objects():
    if not isinstance(function, types.FunctionType):
      continue
    if function.__code__.co_filename != path:
      continue
    for before, after in changed:
      if function.__code__ == before:
        if before.co_freevars != after.co_freevars:
          return False
        function.__code__ = after
        done += 1
        break
  return done > 0


class _Judge:
  """Pytest plugin: in place of a run, judges mutants by the tests collected."""

  def __init__(
    self,
    jobs: Sequence[tuple[str, Mutant]],
    executed: Executed,
    out: Path,
    importing: bool,
  ):
    self.jobs, self.executed, self.out, self.importing = jobs, executed, out, importing
    self.log = WORK / f"running-{os.getpid()}"
    self.failed = False

  def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
    del location
    self.log.write_text(nodeid)

  def pytest_runtest_logreport(self, report: Any) -> None:
    self.failed |= report.failed

  def pytest_runtestloop(self, session: Any) -> bool:
    threads = [x.read_text().strip() for x in Path("/proc/self/task").glob("*/comm")]
    if any(name.startswith("tf_") for name in threads):  # of XLA; a fork lacks them
      raise RuntimeError(f"importing the tests started a backend: threads {threads}")
    for file, mutant in self.jobs:
      outcome = self.judge(session.items, file, mutant)
      if outcome is not None:
        _append(self.out, file, mutant, outcome)
    self.log.unlink(missing_ok=True)
    return True

  def judge(self, items: Sequence[Any], file: str, mutant: Mutant) -> Outcome | None:
    """Runs the tests that execute a mutant until one fails; None: cannot exchange."""
    place = {x: i for i, x in enumerate(theory_tests(file, mutant, self.executed))}
    theory = sorted(
      (x for x in items if x.nodeid in place), key=lambda x: place[x.nodeid]
    )
    own = unit_tests(file)
    unit = [x for x in items if x.nodeid.split("::")[0] in own]
    wanted = re.compile(rf"[\[-]{name_of(file)}[\]-]")
    unit = [
      x for x in unit if not x.nodeid.startswith(CONFORMANCE) or wanted.search(x.nodeid)
    ]
    cut = False
    for kind, chosen in (("theory", theory), ("unit", unit)):
      self.log.write_text("")
      code = _forked(lambda chosen=chosen: self.run(chosen, file, mutant), LIMIT)
      running = self.log.read_text()
      if code == IMPOSSIBLE:
        return None
      if code == OUT_OF_TIME and kind == "theory":
        cut = True
      elif code != 0:
        return Outcome(kind, running + (" (time)" if code == OUT_OF_TIME else ""), cut)
    return Outcome("survived", "", cut)

  def run(self, items: Sequence[Any], file: str, mutant: Mutant) -> int:
    """Runs tests until one fails; whether one did."""
    if not self.importing and not exchange(str(REPOSITORY / file), mutant):
      return IMPOSSIBLE
    for item, following in itertools.zip_longest(items, items[1:]):
      item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
      if self.failed:
        return 1
    return 0


def _at_import(file: str, mutant: Mutant, executed: Executed) -> bool:
  """Whether a mutant's statement runs when the package or a test is imported."""
  low, high = mutant.lines
  imports = executed.imports.get(file, set())
  return not mutant.in_function or any(low <= x <= high for x in imports)


def _session(
  jobs: Sequence[tuple[str, Mutant]], executed: Executed, out: Path, importing: bool
) -> int:
  """Judges mutants in a fork that collects their tests, and appends the outcomes.

  Args:
    jobs: one mutant, if it is imported.
    executed: what the theory tests execute.
    out: file of outcomes.
    importing: import the mutant's module instead of exchanging the code of functions.

  Returns:
    The exit code of pytest.
  """
  judge = _Judge(jobs, executed, out, importing)

  def work() -> int:
    if importing:
      file, mutant = jobs[0]
      sys.meta_path.insert(0, Finder({_module_name(file): mutant.tree()}))
    files = {x for file, _ in jobs for x in unit_tests(file)}
    return _pytest([THEORY, *sorted(files)], judge)

  return _forked(work, None)


def judge_all(
  jobs: Sequence[tuple[str, Mutant]], executed: Executed, out: Path
) -> dict[tuple[str, str], Outcome]:
  """Judges mutants that the file of outcomes lacks; returns it, by file and text."""

  def known() -> dict[tuple[str, str], Outcome]:
    lines = out.read_text().splitlines() if out.exists() else []
    return {
      (x["file"], x["mutant"]): Outcome(x["kind"], x["test"], x["cut"])
      for x in map(json.loads, lines)
    }

  def left() -> list[tuple[str, Mutant]]:
    done = known()
    return [job for job in jobs if (job[0], str(job[1])) not in done]

  quick = [job for job in left() if not _at_import(*job, executed)]
  if quick and (code := _session(quick, executed, out, False)):
    raise RuntimeError(f"the tests could not be collected: exit code {code}")
  for job in left():  # those too that cannot be exchanged
    code = _session([job], executed, out, True)
    if code:
      kind = "theory" if theory_tests(*job, executed) else "unit"
      _append(out, *job, Outcome(kind, "import", False))
  return known()


def _append(out: Path, file: str, mutant: Mutant, outcome: Outcome) -> None:
  line = json.dumps({"file": file, "mutant": str(mutant), **outcome._asdict()})
  with out.open("a") as stream:
    stream.write(line + "\n")


def _prepare() -> None:
  """Imports what every fork needs, before any backend starts."""
  (WORK / "jax").mkdir(parents=True, exist_ok=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(WORK / "jax")
  os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
  # First, because it sets what JAX reads when it is imported.
  from tests import conftest  # noqa: F401, I001

  import chex  # noqa: F401
  import flax.struct  # noqa: F401
  import optax  # noqa: F401
  import scipy.optimize
  import scipy.stats  # noqa: F401


def main(arguments: Sequence[str] | None = None) -> None:
  """Judges the mutants; prints each that no theory test kills, and the table."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--only", nargs="+", metavar="FILE", help="mutate these files")
  parser.add_argument("--sample", type=int, metavar="N", help="mutants of each file")
  parser.add_argument("--seed", type=int, default=0, help="of the sample")
  parser.add_argument("--match", default="", metavar="TEXT", help="only such mutants")
  parser.add_argument("--list", action="store_true", help="print the mutants only")
  parser.add_argument(
    "--out",
    type=Path,
    help="append each outcome, a line of JSON; those it has are not judged again",
  )
  options = parser.parse_args(arguments)
  files = targets()
  if options.only:
    unknown = [file for file in options.only if file not in files]
    if unknown:
      parser.error(f"--only {unknown[0]}: not mutated; known: {', '.join(files)}")
    files = options.only
  chosen = {}
  for file in files:
    every = mutants((REPOSITORY / file).read_text())
    every = [mutant for mutant in every if options.match in str(mutant)]
    if options.sample is not None and options.sample < len(every):
      draw = random.Random(f"{options.seed} {file}").sample(
        range(len(every)), options.sample
      )
      every = [every[i] for i in sorted(draw)]
    chosen[file] = every
  if options.list:
    for file, every in chosen.items():
      for mutant in every:
        print(f"{file}:{mutant}")
    print(sum(map(len, chosen.values())), "mutants")
    return
  _prepare()
  executed = first_run()
  out = options.out or WORK / f"outcomes-{os.getpid()}.jsonl"
  jobs = [(file, mutant) for file, every in chosen.items() for mutant in every]
  outcomes = judge_all(jobs, executed, out)
  table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  for file, mutant in jobs:
    outcome = outcomes[file, str(mutant)]
    table[file][outcome.kind] += 1
    table[file]["cut"] += outcome.cut
    if outcome.kind != "theory":
      cut = ", theory cut" if outcome.cut else ""
      print(f"{file}:{mutant}\n  {outcome.kind} {outcome.test}{cut}")
  print(f"\n{'file':44} mutants theory  unit survived, of which theory was cut")
  total = sum(table.values(), collections.Counter())
  for file, count in [*table.items(), ("all", total)]:
    theory, unit, survived = (count[x] for x in ("theory", "unit", "survived"))
    number = theory + unit + survived
    print(f"{file:44} {number:7} {theory:6} {unit:5} {survived:8} {count['cut']:5}")


if __name__ == "__main__":
  main()
