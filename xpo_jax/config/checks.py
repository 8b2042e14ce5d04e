"""Checks config fields: a refusal names the field, its value and the allowed ones."""

import difflib
import numbers
from typing import Any

from xpo_jax.data import buckets, split


def check_positive(config: Any, *fields: str) -> None:
  """Refuses a field that is neither None nor a whole number >= 1."""
  _check_whole(config, fields, 1)


def check_not_negative(config: Any, *fields: str) -> None:
  """Refuses a field that is neither None nor a whole number >= 0."""
  _check_whole(config, fields, 0)


def check_among(config: Any, field: str, allowed: tuple[str, ...]) -> None:
  """Refuses a field whose value is not among those allowed."""
  value = vars(config)[field]
  if value not in allowed:
    close = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
      f"{type(config).__name__}.{field} is {value!r}; allowed: {allowed}{hint}"
    )


def check_directory(config: Any, field: str) -> None:
  """Refuses what names neither a whole path nor a directory in a bucket."""
  try:
    buckets.check_name(vars(config)[field])
  except ValueError as error:
    raise ValueError(f"{type(config).__name__}.{field} {error}") from error


def check_portion(config: Any) -> None:
  """Refuses a portion of the data that is not one of `split.PORTIONS`."""
  if config.portion is not None and config.portion not in split.PORTIONS:
    raise ValueError(
      f"{type(config).__name__}.portion is {config.portion!r}; allowed: "
      f"{', '.join(split.PORTIONS)}, or None for all rows"
    )


def _check_whole(config: Any, fields: tuple[str, ...], least: int) -> None:
  for field in fields:
    value = vars(config)[field]
    if value is None or (isinstance(value, numbers.Integral) and value >= least):
      continue
    raise ValueError(
      f"{type(config).__name__}.{field} is {value!r}; it must be a whole number, at "
      f"least {least}"
    )
