"""Builds objectives within compiled programs: one program for many hyperparameters."""

from collections.abc import Callable, Mapping
from typing import Any

from xpo_jax.types import Objective

Hparams = Mapping[str, Any]


def split(hparams: Hparams) -> tuple[tuple[tuple[str, Any], ...], dict[str, float]]:
  """Splits hyperparameters into static ones, hashable, and numbers to trace.

  Floats are traced, so that runs over a hyperparameter share a program; names of a link
  or a divergence, whole numbers and None are static.
  """
  traced = {name: value for name, value in hparams.items() if isinstance(value, float)}
  static = tuple(sorted((n, x) for n, x in hparams.items() if n not in traced))
  return static, traced


def build(
  make: Callable[..., Objective], static: tuple[tuple[str, Any], ...], traced: Hparams
) -> Objective:
  """Builds an objective of static and traced hyperparameters."""
  return make(**dict(static), **traced)
