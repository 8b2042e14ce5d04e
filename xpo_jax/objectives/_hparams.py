"""Range checks of hyperparameters, run when an objective is built; tracers pass."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from xpo_jax.types import Array

_Choice = TypeVar("_Choice")


def check(
  objective: str,
  hparam: str,
  value: float | Array,
  *,
  usual: float | None,
  gt: float | None = None,
  ge: float | None = None,
  lt: float | None = None,
  le: float | None = None,
) -> None:
  """Refuses a hyperparameter outside its range.

  A tracer has no value, so the caller must check a swept hyperparameter before the
  sweep.

  Args:
    objective: the factory's name, for the message.
    hparam: the argument's name, for the message.
    value: the argument.
    usual: suggested in the message: the paper's value, or that of its code or of TRL
      where the paper has none; None: not used.
    gt: exclusive lower bound.
    ge: inclusive lower bound.
    lt: exclusive upper bound.
    le: inclusive upper bound.

  Raises:
    ValueError: not a finite number, or outside the range.
  """
  if isinstance(value, jax.core.Tracer):
    return
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = np.nan
  bounds = {">": gt, ">=": ge, "<": lt, "<=": le}
  holds = {
    ">": gt is None or number > gt,
    ">=": ge is None or number >= ge,
    "<": lt is None or number < lt,
    "<=": le is None or number <= le,
  }
  if np.isfinite(number) and all(holds.values()):
    return
  allowed = [f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None]
  raise ValueError(
    f"{objective}: {hparam}={value!r} is not allowed; {hparam} must be "
    f"{' and '.join(['a finite number', *allowed])} "
    f"(usual: {hparam}={usual if usual is None else format(usual, 'g')})"
  )


def check_optional_beta(
  objective: str, beta: float | Array | None, *, usual: float | None
) -> None:
  """Refuses a KL coefficient that is neither > 0 nor None (no reference).

  Raises:
    ValueError: beta is given and not > 0.
  """
  if beta is not None:
    check(objective, "beta", beta, usual=usual, gt=0)


def choice(
  objective: str, hparam: str, value: Any, named: Mapping[str, _Choice]
) -> _Choice:
  """Resolves a structural hyperparameter (a link, a divergence) from a value or name.

  Args:
    objective: the factory's name, for the message.
    hparam: the argument's name, for the message.
    value: the argument.
    named: name -> value; a value of the type of these is returned as it is.

  Raises:
    ValueError: neither such a value nor one of the names.
  """
  kind = type(next(iter(named.values())))
  if isinstance(value, kind):
    return value
  if isinstance(value, str) and value in named:
    return named[value]
  close = difflib.get_close_matches(str(value), named, n=1)
  meant = f" (did you mean {close[0]!r}?)" if close else ""
  raise ValueError(
    f"{objective}: {hparam}={value!r} is not known{meant}; give a {kind.__name__}, or "
    f"one of {', '.join(named)}"
  )


def check_key(objective: str, key: Array | None) -> Array:
  """Returns the key of an objective that draws random numbers; refuses None.

  Raises:
    ValueError: key is None.
  """
  if key is None:
    raise ValueError(
      f"{objective} draws random numbers and key=None; pass key=jax.random.key(seed), "
      "a new one for every batch"
    )
  return key
