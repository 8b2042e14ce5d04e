"""Counts FLOPs of matrix products: those of a traced program, and the least needed.

A traced program is counted before the compiler: on all devices together, with what
rematerialisation computes again, without what the partitioner repeats.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from xpo_jax.models import transformer
from xpo_jax.models.config import Config

Loops = Callable[[str], float]


def traced(jaxpr: ClosedJaxpr, loops: Loops) -> float:
  """FLOPs of one run of a program, those of its Pallas kernels too.

  Args:
    jaxpr: of `jax.jit(...).trace(...)`.
    loops: `name stack -> trips` of a loop whose length is data.
  """
  return _of(jaxpr.jaxpr, loops, "", True)


def in_kernels(jaxpr: ClosedJaxpr, loops: Loops) -> float:
  """FLOPs of one run of a program's Pallas kernels alone; arguments as in `traced`."""
  return _of(jaxpr.jaxpr, loops, "", False)


def _of(jaxpr: Jaxpr, loops: Loops, path: str, counts: bool) -> float:
  """FLOPs of a part of a program; `counts`: also of products outside kernels."""
  return sum(_of_equation(eqn, loops, path, counts) for eqn in jaxpr.eqns)


def _of_equation(eqn: JaxprEqn, loops: Loops, path: str, counts: bool) -> float:
  name = eqn.primitive.name
  if name == "dot_general":
    (contracted, _), _ = eqn.params["dimension_numbers"]
    size = math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    return 2.0 * math.prod(_shape(eqn.outvars[0])) * size * counts
  if name in ("ragged_dot", "ragged_dot_general"):
    size = _shape(eqn.outvars[0])[-1]
    return 2.0 * math.prod(_shape(eqn.invars[0])) * size * counts
  here = f"{path}/{eqn.source_info.name_stack}"
  kernel = name == "pallas_call"
  inner = [_of(j, loops, here, counts or kernel) for j in _jaxprs(eqn)]
  if kernel:
    return sum(inner) * math.prod(eqn.params["grid_mapping"].grid)
  if name == "scan":
    return sum(inner) * eqn.params["length"]
  if name == "while":
    return sum(inner) * loops(here)
  if name == "cond":
    return max(inner, default=0.0)
  if name == "shard_map":
    return sum(inner) * eqn.params["mesh"].size
  return sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape


def _jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
  """Programs that an equation runs; of a custom derivative the function alone."""
  found = []
  for value in eqn.params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      if isinstance(one, ClosedJaxpr):
        found.append(one.jaxpr)
      elif isinstance(one, Jaxpr):
        found.append(one)
  return found


def of_token(config: Config) -> float:
  """FLOPs of the blocks' matrices on one token, forward, without attention."""
  total = 0.0
  for path, weight in jax.tree_util.tree_leaves_with_path(
    transformer.weights(config)["blocks"]
  ):
    if path[-1].key != "kernel":
      continue
    share = 1.0
    if "experts" in weight.axes:
      share = config.experts.active / config.experts.count
    total += 2.0 * math.prod(weight.shape) * share
  return total


def of_attention(config: Config, position: np.ndarray) -> float:
  """FLOPs of attention, forward: each token with all it attends to, in all layers.

  Args:
    config: of the decoder.
    position: of each token in its own text: it attends to so many, and itself.
  """
  windows = config.windows or (0,) * config.layers
  pairs = {
    window: np.minimum(position + 1.0, window or np.inf).sum()
    for window in set(windows)
  }
  return sum(4.0 * pairs[window] * config.heads * config.head_dim for window in windows)


def of_head(config: Config) -> float:
  """FLOPs of the head over the vocabulary for one token, forward."""
  return 2.0 * config.width * config.vocab


def forward(config: Config, position: np.ndarray, predicted: float) -> float:
  """The least FLOPs of a forward pass.

  Args:
    config: of the decoder.
    position: of each token, without padding, in its own text; a prompt that several
      completions share counts once.
    predicted: number of tokens whose logits are needed.
  """
  blocks = of_token(config) * position.size + of_attention(config, position)
  return blocks + predicted * of_head(config)
