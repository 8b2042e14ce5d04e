"""Imports functions that a recipe, a command or a run names as "module:function"."""

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def function(name: str, what: str = "function") -> Callable[..., Any]:
  """Imports "module:function"; the module may be a file of the working directory.

  Args:
    name: whose code is trusted (`config.trust`).
    what: word for it in messages.

  Raises:
    ValueError: no such module or function; suggests the nearest name.
  """
  module_name, colon, attribute = name.partition(":")
  if not colon or not module_name or not attribute:
    raise ValueError(f"{what} {name!r} is not MODULE:FUNCTION")
  if (Path.cwd() / f"{module_name.partition('.')[0]}.py").exists():
    local = str(Path.cwd())
    if local not in sys.path:
      sys.path.append(local)  # last: it hides no installed module
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{what} {name}: {error}; run where the module is, or install it"
    ) from error
  found = vars(module).get(attribute)
  if not callable(found):
    near = difflib.get_close_matches(attribute, list(vars(module)), n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{module_name} has no {what} {attribute!r}{meant}")
  return found
