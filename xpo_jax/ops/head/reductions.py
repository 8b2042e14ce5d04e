"""Reductions of logits over the vocabulary, added up and differentiated by blocks.

A statistic that is a function of such reductions needs no array [tokens, vocabulary]:
`add` takes up one block of logits after another (an online softmax, Milakov and
Gimelshein 2018, arXiv:1805.02867), and `pull`, given what came out for the whole
vocabulary, computes the gradient of a block's logits from these logits alone.

Shapes: `n` tokens, `v` entries of a block. Arrays per token are `[n, 1]`, so that they
broadcast over a block. Logits are finite, float32 or wider.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xpo_jax.ops import capping
from xpo_jax.types import Array

# Where a running maximum starts: finite, so that an entry of -inf weighs 0, not NaN.
_LOWEST = -1e30


@dataclasses.dataclass(frozen=True)
class Logits:
  """Logits of a role as a statistic reads them: bounded, then divided.

  Attributes:
    role: "policy", "ref", "teacher".
    softcap: c of `capping.soft_cap`, or None.
    temperature: > 0.
  """

  role: str
  softcap: float | None = None
  temperature: float = 1.0

  def read(self, x: Array) -> Array:
    """Bounds and divides logits of the role."""
    bounded = capping.soft_cap(x, self.softcap)
    return bounded if self.temperature == 1 else bounded / self.temperature

  def of(self, block: "Block") -> Array:
    """These logits of a block, `[n, v]`."""
    return self.read(block.logits[self.role])


@dataclasses.dataclass(frozen=True)
class Target:
  """The logit of the target."""

  logits: Logits


@dataclasses.dataclass(frozen=True)
class LogSumExp:
  """log sum_v exp(power x_v), over all tokens or all but the target."""

  logits: Logits
  power: float = 1.0
  others: bool = False


@dataclasses.dataclass(frozen=True)
class Mean:
  """E_v fn(x_v, ..) under the softmax of `weight`.

  Attributes:
    weight: the logits whose softmax it is.
    of: what `fn` reads.
    fn: elementwise, of the logits `of`; differentiable.
  """

  weight: Logits
  of: tuple[Logits, ...]
  fn: Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class LogProbMean:
  """E_v fn(log p_v, ..) under the softmax of `weight`; a second pass over the logits.

  Its gradient holds `fn` constant: it is of the softmax alone.

  Attributes:
    weight: the logits whose softmax it is.
    of: the logits whose log-softmaxes `fn` reads.
    fn: elementwise, of log-probabilities.
  """

  weight: Logits
  of: tuple[Logits, ...]
  fn: Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Top:
  """The k largest logits in descending order and their ids, of all or all others.

  Of equal ones that of the earlier block comes first. The logits have a gradient.
  """

  logits: Logits
  k: int
  others: bool = False


Reduction = Target | LogSumExp | Mean | LogProbMean | Top


class Block(NamedTuple):
  """Logits of tokens at consecutive entries of the vocabulary.

  Attributes:
    logits: role -> `[n, v]`.
    target: ids, `[n, 1]`.
    ids: of the entries, `[1, v]` or `[n, v]`.
    valid: whether an entry is in the vocabulary, of the same shape; None: all are.
  """

  logits: Mapping[str, Array]
  target: Array
  ids: Array
  valid: Array | None = None

  @property
  def is_target(self) -> Array:
    """`[n, v]`."""
    hit = self.ids == self.target
    return hit if self.valid is None else hit & self.valid

  def masked(self, x: Array, others: bool, fill: float) -> Array:
    """`x` with `fill` outside the vocabulary and, if `others`, at the target."""
    if self.valid is not None:
      x = jnp.where(self.valid, x, fill)
    return jnp.where(self.is_target, fill, x) if others else x


class Plan(NamedTuple):
  """Reductions by kind, each once; the log-sum-exps that means need among them."""

  targets: tuple[Target, ...]
  sums: tuple[LogSumExp, ...]
  means: tuple[Mean, ...]
  tops: tuple[Top, ...]
  second: tuple[LogProbMean, ...]

  @property
  def roles(self) -> frozenset[str]:
    """The roles whose logits are read."""
    return frozenset(role for group in self for x in group for role in roles(x))


class State(NamedTuple):
  """What blocks so far have added up to, in the order of a plan.

  Attributes:
    targets: the logit, `[n, 1]`.
    sums: running maximum, and the sum of exponentials relative to it, `[n, 1]` each.
    means: the sum of `fn` times the exponentials, relative to the same maximum.
    tops: `[n, k]` logits and ids.
  """

  targets: tuple[Array, ...]
  sums: tuple[tuple[Array, Array], ...]
  means: tuple[Array, ...]
  tops: tuple[tuple[Array, Array], ...]


Results = Mapping[Reduction, Any]  # arrays [n, 1]; of Top a pair of [n, k]


def plan(reductions: Iterable[Reduction]) -> Plan:
  """Orders reductions, and adds the normalisers that they need."""
  wanted: dict[Reduction, None] = dict.fromkeys(reductions)
  for reduction in list(wanted):
    if isinstance(reduction, Mean):
      wanted[LogSumExp(reduction.weight)] = None
    elif isinstance(reduction, LogProbMean):
      for logits in (reduction.weight, *reduction.of):
        wanted[LogSumExp(logits)] = None

  def kind(of: type) -> tuple:
    return tuple(x for x in wanted if isinstance(x, of))

  return Plan(kind(Target), kind(LogSumExp), kind(Mean), kind(Top), kind(LogProbMean))


def roles(reduction: Reduction) -> frozenset[str]:
  """The roles whose logits it reads."""
  if isinstance(reduction, Mean | LogProbMean):
    return frozenset(logits.role for logits in (reduction.weight, *reduction.of))
  return frozenset({reduction.logits.role})


def reading(reduction: Reduction, change: Callable[[Logits], Logits]) -> Reduction:
  """The same reduction of other logits."""
  if isinstance(reduction, Mean | LogProbMean):
    return dataclasses.replace(
      reduction,
      weight=change(reduction.weight),
      of=tuple(change(logits) for logits in reduction.of),
    )
  return dataclasses.replace(reduction, logits=change(reduction.logits))


# --- Forward


def start(plan: Plan, tokens: int, dtype: Any) -> State:
  """The state before the first block."""
  zero = jnp.zeros((tokens, 1), dtype)
  lowest = jnp.full((tokens, 1), _LOWEST, dtype)

  def top(k: int) -> tuple[Array, Array]:
    return jnp.full((tokens, k), -jnp.inf, dtype), jnp.zeros((tokens, k), jnp.int32)

  return State(
    targets=tuple(zero for _ in plan.targets),
    sums=tuple((lowest, zero) for _ in plan.sums),
    means=tuple(zero for _ in plan.means),
    tops=tuple(top(one.k) for one in plan.tops),
  )


def add(plan: Plan, state: State, block: Block) -> State:
  """Takes up one block of logits."""
  targets = tuple(
    total + _sum(jnp.where(block.is_target, one.logits.of(block), 0))
    for one, total in zip(plan.targets, state.targets, strict=True)
  )
  sums: list[tuple[Array, Array]] = []
  softmax: dict[LogSumExp, tuple[Array, Array]] = {}
  for one, (largest, total) in zip(plan.sums, state.sums, strict=True):
    x = block.masked(one.power * one.logits.of(block), one.others, -jnp.inf)
    largest_now = jnp.maximum(largest, x.max(-1, keepdims=True))
    rescale, weight = jnp.exp(largest - largest_now), jnp.exp(x - largest_now)
    sums.append((largest_now, total * rescale + _sum(weight)))
    softmax[one] = rescale, weight
  means = []
  for mean, total in zip(plan.means, state.means, strict=True):
    rescale, weight = softmax[LogSumExp(mean.weight)]
    value = block.masked(mean.fn(*(x.of(block) for x in mean.of)), False, 0)
    means.append(total * rescale + _sum(weight * value))
  tops = tuple(
    _merge_top(one.k, best, _top_of_block(one, block))
    for one, best in zip(plan.tops, state.tops, strict=True)
  )
  return State(targets, tuple(sums), tuple(means), tops)


def _sum(x: Array) -> Array:
  return x.sum(-1, keepdims=True)


def _top_of_block(top: Top, block: Block) -> tuple[Array, Array]:
  x = block.masked(top.logits.of(block), top.others, -jnp.inf)
  logit, at = jax.lax.top_k(x, min(top.k, x.shape[-1]))
  return logit, block.ids[0, at]


def _merge_top(
  k: int, best: tuple[Array, Array], other: tuple[Array, Array]
) -> tuple[Array, Array]:
  """The k largest of two lists; of equal ones those of the first list come first."""
  logit, ids = (
    jnp.concatenate(pair, axis=-1) for pair in zip(best, other, strict=True)
  )
  logit, at = jax.lax.top_k(logit, k)
  return logit, jnp.take_along_axis(ids, at, axis=-1)


def merge(plan: Plan, state: State, axis: str) -> State:
  """Merges the states of devices that hold parts of the vocabulary, in its order."""
  sums: list[tuple[Array, Array]] = []
  scale: dict[LogSumExp, Array] = {}
  for one, (largest, total) in zip(plan.sums, state.sums, strict=True):
    largest_now = jax.lax.pmax(largest, axis)
    scale[one] = jnp.exp(largest - largest_now)
    sums.append((largest_now, jax.lax.psum(total * scale[one], axis)))
  means = (
    jax.lax.psum(total * scale[LogSumExp(one.weight)], axis)
    for one, total in zip(plan.means, state.means, strict=True)
  )

  def top(one: Top, best: tuple[Array, Array]) -> tuple[Array, Array]:
    logit, ids = jax.lax.all_gather(best, axis, axis=1, tiled=True)
    return _merge_top(one.k, (logit[:, :0], ids[:, :0]), (logit, ids))

  return State(
    jax.lax.psum(state.targets, axis),
    tuple(sums),
    tuple(means),
    tuple(top(*pair) for pair in zip(plan.tops, state.tops, strict=True)),
  )


def combine(plan: Plan, state: State, other: State) -> State:
  """Adds up the states of two parts of the vocabulary, the first one first."""
  sums: list[tuple[Array, Array]] = []
  scale: dict[LogSumExp, tuple[Array, Array]] = {}
  pairs = zip(plan.sums, state.sums, other.sums, strict=True)
  for one, (largest, total), (other_largest, other_total) in pairs:
    largest_now = jnp.maximum(largest, other_largest)
    own, others = jnp.exp(largest - largest_now), jnp.exp(other_largest - largest_now)
    sums.append((largest_now, total * own + other_total * others))
    scale[one] = own, others
  means = []
  for mean, x, y in zip(plan.means, state.means, other.means, strict=True):
    own, others = scale[LogSumExp(mean.weight)]
    means.append(x * own + y * others)
  return State(
    jax.tree.map(jnp.add, state.targets, other.targets),
    tuple(sums),
    tuple(means),
    tuple(
      _merge_top(one.k, x, y)
      for one, x, y in zip(plan.tops, state.tops, other.tops, strict=True)
    ),
  )


def results(plan: Plan, state: State) -> dict[Reduction, Any]:
  """The reductions of the first pass, from the state after the last block."""
  out: dict[Reduction, Any] = dict(zip(plan.targets, state.targets, strict=True))
  totals = {}
  for one, (largest, total) in zip(plan.sums, state.sums, strict=True):
    totals[one] = total
    out[one] = largest + jnp.log(total)
  for mean, weighted in zip(plan.means, state.means, strict=True):
    out[mean] = weighted / totals[LogSumExp(mean.weight)]
  return out | dict(zip(plan.tops, state.tops, strict=True))


def add_second(
  plan: Plan, state: tuple[Array, ...], first: Results, block: Block
) -> tuple[Array, ...]:
  """Takes up one block in the second pass; the state, zeros `[n, 1]`, is the result.

  Args:
    plan: the plan.
    state: one array for each of `plan.second`.
    first: `results` of the first pass.
    block: the logits.
  """
  return tuple(
    total + _sum(_probability(one.weight, first, block) * _value(one, first, block))
    for one, total in zip(plan.second, state, strict=True)
  )


def _log_probability(logits: Logits, results: Results, block: Block) -> Array:
  return logits.of(block) - results[LogSumExp(logits)]


def _probability(logits: Logits, results: Results, block: Block) -> Array:
  return block.masked(jnp.exp(_log_probability(logits, results, block)), False, 0)


def _value(mean: LogProbMean, results: Results, block: Block) -> Array:
  logp = (_log_probability(logits, results, block) for logits in mean.of)
  return block.masked(mean.fn(*logp), False, 0)


# --- Backward


def pull(
  plan: Plan,
  results: Results,
  cotangents: Results,
  block: Block,
  roles: Collection[str],
) -> dict[str, Array]:
  """The gradient of a block's logits.

  Args:
    plan: the reductions that have a cotangent, and those that they need.
    results: of the whole vocabulary, both passes.
    cotangents: like the results; of Top one array, of the logits. A reduction without
      one has the cotangent 0.
    block: the logits.
    roles: whose logits have a gradient.

  Returns:
    role -> `[n, v]`.
  """

  d: dict[Logits, Array] = {}  # of the logits as statistics read them

  def give(logits: Logits, gradient: Array) -> None:
    if logits.role in roles:
      d[logits] = d[logits] + gradient if logits in d else gradient

  for target in plan.targets:
    if target in cotangents:
      give(target.logits, jnp.where(block.is_target, cotangents[target], 0))
  for one in plan.sums:
    if one in cotangents:
      # d log sum exp t = sum softmax(t) dt, with t = power x
      weight = jnp.exp(one.power * one.logits.of(block) - results[one])
      weight = one.power * cotangents[one] * weight
      give(one.logits, block.masked(weight, one.others, 0))
  for mean in plan.means:
    if mean in cotangents:
      # d E f = sum p ((f - E f) dx + df)
      p = cotangents[mean] * _probability(mean.weight, results, block)
      value, d_value = jax.vjp(mean.fn, *(logits.of(block) for logits in mean.of))
      give(mean.weight, p * (value - results[mean]))
      for logits, gradient in zip(mean.of, d_value(p), strict=True):
        give(logits, gradient)
  for second in plan.second:
    if second in cotangents:
      p = cotangents[second] * _probability(second.weight, results, block)
      give(second.weight, p * (_value(second, results, block) - results[second]))
  for top in plan.tops:
    if top in cotangents:
      give(top.logits, _scattered(cotangents[top], results[top][1], block))
  out = {role: jnp.zeros_like(block.logits[role]) for role in roles}
  for logits, gradient in d.items():
    role = logits.role
    _, d_raw = jax.vjp(logits.read, block.logits[role])
    out[role] += d_raw(gradient)[0]
  return {role: block.masked(x, False, 0) for role, x in out.items()}


def _scattered(x: Array, ids: Array, block: Block) -> Array:
  """`x` at the ids of a block, 0 elsewhere, `[n, v]`."""
  total = jnp.zeros_like(next(iter(block.logits.values())))
  for j in range(x.shape[-1]):
    total += jnp.where(block.ids == ids[:, j : j + 1], x[:, j : j + 1], 0)
  return total
