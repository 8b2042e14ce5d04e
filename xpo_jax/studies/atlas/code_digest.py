"""Digests of the code that a function runs: files of the package that it imports.

Comments and docstrings do not count, and neither does the code of other packages, whose
versions a cell records.
"""

import ast
import functools
import hashlib
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent
_NAME = PACKAGE.name


def digest(modules: Iterable[str]) -> str:
  """The digest of modules and of all that they import of the package.

  An `__init__` does not count: in this package it defines nothing but an index.

  Args:
    modules: dotted names, such as "xpo_jax.testing.bandit".
  """
  files = sorted(set().union(*(closure(name) for name in modules)))
  parts = [f"{file}\n{_code(PACKAGE / file)}" for file in files]
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def closure(module: str) -> frozenset[str]:
  """Files of a module and of all that it imports, relative to the package.

  Raises:
    ValueError: no such module of the package.
  """
  first = _file(module)
  if first is None:
    raise ValueError(f"{module} is not a module of {_NAME}")
  found, waiting = set(), [first]
  while waiting:
    file = waiting.pop()
    if file not in found:
      found.add(file)
      waiting += _imported(file)
  return frozenset(found)


@functools.cache
def _imported(file: str) -> tuple[str, ...]:
  """Files that a file imports, also within its functions."""
  names = []
  for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names.append(node.module)
      names += [f"{node.module}.{alias.name}" for alias in node.names]
  return tuple(filter(None, map(_file, names)))


def _file(module: str) -> str | None:
  head, _, rest = module.partition(".")
  path = PACKAGE / f"{rest.replace('.', '/')}.py"
  if head != _NAME or not rest or not path.is_file():
    return None
  return path.relative_to(PACKAGE).as_posix()


@functools.cache
def _code(path: Path) -> str:
  """A file without comments, docstrings and blank lines."""
  text = path.read_text(encoding="utf-8")
  lines = text.splitlines()
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      row, column = token.start
      lines[row - 1] = lines[row - 1][:column]
  for node in ast.walk(ast.parse(text)):
    if not isinstance(node, ast.Expr):
      continue
    value = node.value
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
      for row in range(node.lineno, node.end_lineno + 1):
        lines[row - 1] = ""
  return "\n".join(line.rstrip() for line in lines if line.strip())
