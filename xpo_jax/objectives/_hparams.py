"""Checks of hyperparameters, made when an objective is built; traced values pass."""

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from xpo_jax.types import Array


def check(
  objective: str,
  hparam: str,
  value: float | Array,
  *,
  paper: float,
  gt: float | None = None,
  ge: float | None = None,
  lt: float | None = None,
  le: float | None = None,
) -> None:
  """Refuses a hyperparameter outside its range.

  A tracer has no value yet, so a swept hyperparameter is the caller's to check before
  the sweep.

  Args:
    objective: the factory's name, for the message.
    hparam: the argument's name, for the message.
    value: what was passed.
    paper: the paper's value, offered as the fix.
    gt: the value must be greater.
    ge: the value must be greater or equal.
    lt: the value must be smaller.
    le: the value must be smaller or equal.

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
    f"{' and '.join(['a finite number', *allowed])} (paper: {hparam}={paper:g})"
  )


def check_optional_beta(
  objective: str, beta: float | Array | None, *, paper: float
) -> None:
  """Refuses a tie to the reference that is neither > 0 nor left out (None).

  Raises:
    ValueError: beta is given and not > 0.
  """
  if beta is not None:
    check(objective, "beta", beta, paper=paper, gt=0)


def choice(objective: str, hparam: str, value: Any, named: Mapping[str, Any]) -> Any:
  """A structural hyperparameter (a link, a divergence): a value, or the name of one.

  Args:
    objective: the factory's name, for the message.
    hparam: the argument's name, for the message.
    value: what was passed.
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
  """The key of an objective that draws lots, refused when it is missing.

  Raises:
    ValueError: key is None.
  """
  if key is None:
    raise ValueError(
      f"{objective} draws lots and key=None; pass key=jax.random.key(seed), another "
      "one for every batch"
    )
  return key
