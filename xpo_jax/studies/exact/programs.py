"""Objectives within compiled programs: one program for many hyperparameters, and the
samples that an objective asks for."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from xpo_jax.types import Array, Objective

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


def sample(objective: Objective, logp_XY: Array, samples: int, key: Array) -> Array:
  """Completions of each prompt, `[X, K]`.

  Args:
    objective: where its column 0 is greedy, the first completion is the likeliest.
    logp_XY: log-probabilities of those who write, nats.
    samples: K, the greedy one included.
    key: PRNG key.
  """
  drawn_KX = jax.random.categorical(key, logp_XY, shape=(samples, len(logp_XY)))
  if objective.column0_source == "greedy":
    drawn_KX = drawn_KX.at[0].set(logp_XY.argmax(1))
  return drawn_KX.T
