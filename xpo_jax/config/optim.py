"""Builds optimisers as optax chains of unit learning rate, and the schedule.

The learning rate stays outside the chain, as a traced number: a sweep over it compiles
once, and the optimiser's state does not carry it.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from xpo_jax.config import checks
from xpo_jax.types import Array, Params

Kind = Literal["adamw", "rmsprop", "adafactor", "lion", "muon"]
Stored = Literal["float32", "bfloat16"]
StoredBase = Literal[Stored, "nf4"]
Schedule = Literal["constant", "linear", "cosine"]
_MUON_RMS = 0.2  # root mean square of an update, as AdamW's usually is


@dataclass(frozen=True)
class Precision:
  """Dtypes of a run's state in memory.

  What is computed of them is float32; a result is rounded to bfloat16 stochastically:
  up or down with probabilities that keep its mean, so that updates far below
  bfloat16's resolution (1 / 256) still add up. Gupta et al. 2015, arXiv:1502.02551.

  Attributes:
    params: of the trained matrices; vectors (norms, biases) and heads stay float32.
      "float32": 4 bytes a parameter.
    moments: of the optimiser's averages. AdamW has two: 4 + 2 x 4 bytes a parameter
      become 4 + 2 x 2 with "bfloat16".
    base: of the matrices of the frozen base that adapters are added to, 4 bytes a
      parameter, 2 with "bfloat16": rounded to the nearest when the run starts. "nf4"
      keeps its linear layers in 4 bits, of blocks of up to 64 weights with a scale of
      16 (QLoRA, Dettmers et al. 2023, arXiv:2305.14314; `sharding.nf4`), and embedding,
      head and router in bfloat16. Adapters stay of `params`; they and merged models are
      written in float32, on the base as it is stored, which with "nf4" is rounded to
      those values again.
  """

  params: Stored = "float32"
  moments: Stored = "float32"
  base: StoredBase = "float32"

  def __post_init__(self):
    checks.check_among(self, "params", get_args(Stored))
    checks.check_among(self, "moments", get_args(Stored))
    checks.check_among(self, "base", get_args(StoredBase))


@dataclass(frozen=True)
class Optimizer:
  """Optimiser, learning-rate schedule, clipping and weight average.

  Attributes:
    kind: adamw, rmsprop (the DPO paper's), adafactor, lion or muon. Muon
      orthogonalises the momentum of the blocks' matrices; embeddings, head, norms,
      biases and scalar heads have AdamW with Nesterov's momentum. Its updates have the
      root mean square of AdamW's, 0.2, so that one learning rate serves both.
    learning_rate: peak, after warm-up.
    warmup_steps: steps of linear warm-up: step 1 has 1 / (warmup + 1) of the peak.
    schedule: after warm-up: constant, or down to `floor` by the last step, linearly
      or along a half cosine.
    floor: fraction of the peak at the last step.
    b1: decay of the first moment (adamw, muon), or of the average whose sign is the
      update (lion).
    b2: decay of the second moment (adamw, rmsprop, muon's AdamW; adafactor has its own
      rule), or of lion's average.
    eps: added to the root of the second moment (adamw, rmsprop, muon's AdamW), and to
      the norm of muon's momentum.
    weight_decay: decoupled, times the learning rate; matrices only, neither norms nor
      biases nor the value head.
    clip: global norm to which a gradient is clipped, or None.
    ema: decay of the moving average of the weights, which is then evaluated and
      exported in place of the last ones, or None.
  """

  kind: Kind = "adamw"
  learning_rate: float = 1e-5
  warmup_steps: int = 0
  schedule: Schedule = "linear"
  floor: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip: float | None = 1.0
  ema: float | None = None

  def __post_init__(self):
    checks.check_among(self, "kind", get_args(Kind))
    checks.check_among(self, "schedule", get_args(Schedule))
    _within("learning_rate", self.learning_rate, self.learning_rate > 0, "> 0")
    _within("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, ">= 0")
    _within("floor", self.floor, 0 <= self.floor <= 1, "in [0, 1]")
    _within("b1", self.b1, 0 <= self.b1 < 1, "in [0, 1)")
    _within("b2", self.b2, 0 <= self.b2 < 1, "in [0, 1)")
    _within("eps", self.eps, self.eps > 0, "> 0")
    _within("weight_decay", self.weight_decay, self.weight_decay >= 0, ">= 0")
    if self.clip is not None:
      _within("clip", self.clip, self.clip > 0, "> 0, or None for no clipping")
    if self.ema is not None:
      _within("ema", self.ema, 0 < self.ema < 1, "in (0, 1), or None for no average")

  @property
  def reads_axes(self) -> bool:
    """Whether `transform` needs the names of the parameters' axes."""
    return self.weight_decay > 0 or self.kind == "muon"


def transform(
  config: Optimizer,
  logical_axes: Params | None = None,
  moments: Stored = "float32",
) -> optax.GradientTransformationExtraArgs:
  """Builds the chain from gradient to update, at unit learning rate.

  Args:
    config: the optimiser.
    logical_axes: axis names of the language model's leaves (`Model.logical_axes()`);
      they tell a matrix from a bias stacked over layers. Read by weight decay and by
      Muon, which leave a scalar head and a critic alone.
    moments: see `Precision`. With "bfloat16", `update` takes a `key` for the rounding.

  Returns:
    A transformation of `{"lm": ..., ["value": ...], ["critic": ...]}`; the step is
    `-learning_rate * update`.

  Raises:
    ValueError: weight decay or Muon without logical axes.
  """
  if config.weight_decay and logical_axes is None:
    raise ValueError(
      f"Optimizer.weight_decay is {config.weight_decay}, but the model names no "
      "logical axes, which tell matrices from biases; name them, or set it to 0"
    )
  if config.kind == "muon" and logical_axes is None:
    raise ValueError(
      "Optimizer.kind is 'muon', but the model names no logical axes, which tell a "
      "matrix's inputs from its outputs; name them, or choose 'adamw'"
    )
  chain = []
  if config.clip is not None:
    chain.append(optax.clip_by_global_norm(config.clip))
  match config.kind:
    case "adamw":
      chain.append(optax.scale_by_adam(config.b1, config.b2, config.eps))
    case "rmsprop":
      chain.append(optax.scale_by_rms(config.b2, config.eps, eps_in_sqrt=False))
    case "adafactor":
      # Shazeer and Stern 2018, without momentum: update clipping, relative step.
      chain.append(optax.scale_by_factored_rms())
      chain.append(optax.clip_by_block_rms(1.0))
      chain.append(optax.scale_by_param_block_rms())
    case "lion":  # Chen et al. 2023, arXiv:2302.06675
      chain.append(optax.scale_by_lion(config.b1, config.b2))
    case "muon":
      # Jordan et al. 2024; update scale of Liu et al. 2025, arXiv:2502.16982.
      chain.append(
        optax.contrib.muon(
          learning_rate=-1.0,  # of a descent: the update is what is subtracted
          beta=config.b1,
          eps=config.eps,
          adam_b1=config.b1,
          adam_b2=config.b2,
          muon_weight_dimension_numbers=functools.partial(_muon_axes, logical_axes),
          consistent_rms=_MUON_RMS,
        )
      )
  if config.weight_decay:
    decays = functools.partial(_decays, matrices(logical_axes))
    chain.append(optax.add_decayed_weights(config.weight_decay, decays))
  whole = optax.chain(*chain)
  return whole if moments == "float32" else _in_bfloat16(whole)


def _in_bfloat16(
  chain: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
  """Keeps the state of a transformation in bfloat16, rounded stochastically.

  To the nearest, a second moment would stand still: its change in a step, a
  thousandth, is below the resolution.
  """

  def is_moment(x: Array) -> bool:
    return x.dtype == jnp.float32 and x.ndim > 0

  def init(params: Params) -> optax.OptState:
    # Of the parameters' arrays alone: Muon's coefficients stay float32.
    return optax.tree.map_params(
      chain,
      lambda x: x.astype(jnp.bfloat16) if is_moment(x) else x,
      chain.init(params),
    )

  def update(
    grads: Params,
    state: optax.OptState,
    params: Params | None = None,
    *,
    key: Array,
  ) -> tuple[Params, optax.OptState]:
    wide = jax.tree.map(
      lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state
    )
    updates, new = chain.update(grads, wide, params)
    return updates, rounded(key, new, state)

  return optax.GradientTransformationExtraArgs(init, update)


def rounded(key: Array, values: Params, like: Params) -> Params:
  """Rounds float32 arrays to the dtypes of others: to bfloat16 stochastically.

  Args:
    key: of these roundings.
    values: arrays; those whose counterpart is not bfloat16 are only cast.
    like: arrays of the dtypes that are wanted.
  """
  leaves, tree = jax.tree.flatten(values)
  return jax.tree.unflatten(
    tree,
    [
      _rounded(jax.random.fold_in(key, n), x)
      if y.dtype == jnp.bfloat16
      else x.astype(y.dtype)
      for n, (x, y) in enumerate(zip(leaves, jax.tree.leaves(like), strict=True))
    ],
  )


def _rounded(key: Array, x: Array) -> Array:
  """float32 to one of the two nearest bfloat16, the nearer the likelier."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # bfloat16 is the upper half of float32: add up to one unit of it, and cut.
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  cut = (bits + noise) & jnp.uint32(0xFFFF0000)
  finite = jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(cut, x.dtype), x)
  return finite.astype(jnp.bfloat16)


def matrices(logical_axes: Params) -> Params:
  """Mask of the parameters with weight decay: those of two or more axes.

  The axes of layers and experts are none of them, and heads and their dimensions are
  one: the biases of experts and the norms of queries and keys are vectors.
  """
  return jax.tree.map(
    lambda axes: (
      sum(axis not in ("layers", "experts", "head_dim") for axis in axes) >= 2
    ),
    logical_axes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def _muon_axes(logical_axes: Params, params: Params) -> Params | None:
  """The input and output axes of the matrices that Muon updates; None: AdamW.

  Those are the kernels of blocks and the factors of adapters, each layer's and each
  expert's a matrix of its own. Embeddings and head, whose gradients have few rows, are
  AdamW's as in Jordan et al. 2024.
  """
  if not isinstance(params, Mapping):  # optax's placeholder of all parameters
    return None

  def numbers(axes: tuple) -> optax.contrib.MuonDimensionNumbers | None:
    if {"vocab", "position"} & set(axes):
      return None
    sides: list[list[int]] = []  # heads and their dimensions are one
    for number, axis in enumerate(axes):
      if axis == "head_dim" and sides:
        sides[-1].append(number)
      elif axis not in ("layers", "experts", "head_dim"):
        sides.append([number])
    if len(sides) != 2:
      return None
    return optax.contrib.MuonDimensionNumbers(*map(tuple, sides))

  lm = jax.tree.map(numbers, logical_axes, is_leaf=lambda x: isinstance(x, tuple))
  return {name: lm if name == "lm" else None for name in params}


def _decays(lm: Params, params: Params) -> Params:
  heads = {name: tree for name, tree in params.items() if name != "lm"}
  return {"lm": lm} | jax.tree.map(lambda _: False, heads)


def schedule(config: Optimizer, steps: int, step: Array) -> Array:
  """Learning rate at a step as a fraction of its peak, in [0, 1].

  Args:
    config: the optimiser.
    steps: steps of the whole run; the last one runs at `floor`.
    step: 0-based, may be traced.
  """
  step = jnp.asarray(step, jnp.float32)
  warm = jnp.minimum((step + 1) / (config.warmup_steps + 1), 1.0)
  span = max(steps - 1 - config.warmup_steps, 1)
  done = jnp.clip((step - config.warmup_steps) / span, 0.0, 1.0)
  match config.schedule:
    case "constant":
      left = jnp.ones_like(done)
    case "linear":
      left = 1 - done
    case "cosine":
      left = (1 + jnp.cos(jnp.pi * done)) / 2
  if config.schedule != "constant":
    left = config.floor + (1 - config.floor) * left
  return warm * left


def average(config: Optimizer, ema: Params, params: Params) -> Params:
  """Updates the moving average of the weights; None where there is none."""
  if config.ema is None:
    return ema
  return jax.tree.map(lambda e, p: config.ema * e + (1 - config.ema) * p, ema, params)


def _within(field: str, value: float, holds: bool, allowed: str) -> None:
  if not holds:
    raise ValueError(f"Optimizer.{field} is {value}; it must be {allowed}")
