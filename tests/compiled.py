"""A module's functions as compiled ones: one program a call, not one an operation.

Most of what an eager test costs is compiling each of its operations for new shapes.
"""

import functools
import inspect
import types
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from xpo_jax import scored as _scored


def module(source: types.ModuleType, *, but: Collection[str] = ()) -> Any:
  """A module whose functions are compiled.

  They take arrays as traced arguments and all else as static ones, which must be
  hashable, and return arrays.

  Args:
    source: the module.
    but: functions that are left as they are.
  """
  return _Compiled(source, but)


class _Compiled:
  def __init__(self, module: types.ModuleType, but: Collection[str]):
    self._module, self._but = module, but

  def __getattr__(self, name: str) -> Any:
    value = getattr(self._module, name)
    eager = name in self._but or not inspect.isfunction(value)
    return value if eager else _compiled(value)


@functools.cache
def _compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
  @functools.wraps(fn)
  def call(*args: Any, **kwargs: Any) -> Any:
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = [x if isinstance(x, jax.Array | np.ndarray) else None for x in leaves]
    static = tuple(None if isinstance(x, jax.Array | np.ndarray) else x for x in leaves)
    return _program(fn, tree, static)(arrays)

  return call


@functools.cache
def _program(fn: Callable[..., Any], tree: Any, static: tuple) -> Callable[..., Any]:
  def run(arrays: list) -> Any:
    both = zip(arrays, static, strict=True)
    args, kwargs = jax.tree.unflatten(tree, [x if y is None else y for x, y in both])
    return fn(*args, **kwargs)

  return jax.jit(run)


# A constructor takes lists, whose numbers would be constants of the program; `check`
# returns no array.
scored = module(
  _scored, but=("check", "from_logits", "from_sequence_logps", "from_token_logps")
)
