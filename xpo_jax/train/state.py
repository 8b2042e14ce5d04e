"""What a training run is between two steps: one pytree, checkpointed whole."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import struct

from xpo_jax.models import heads, lora
from xpo_jax.models.lora import Adapter
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import place, rules
from xpo_jax.types import Array, Objective, Params, State

BASE = "base"  # the frozen parameters that adapters hang on
CRITIC = "critic"  # the decoder of values that are not the policy's own


@struct.dataclass
class TrainState:
  """All that a run carries from step to step; the data's state is `step` alone.

  Attributes:
    step: steps done, int32 scalar.
    params: `{"lm": the policy's trained parameters}`, all of them or its adapters,
      `"value"` where an objective needs a scalar head, and `"critic"`, a decoder with
      a head, where values have one of their own.
    opt_state: the optimiser's.
    method_state: what the objective remembers (`Objective.init`).
    ema: moving average of `params`, or None.
    key: the run's PRNG key; step s draws from `fold_in(key, s)`.
  """

  step: Array
  params: Params
  opt_state: optax.OptState
  method_state: State
  ema: Params | None
  key: Array


@struct.dataclass
class OnlineState:
  """All that an online run carries from iteration to iteration.

  Attributes:
    step: iterations done, int32 scalar.
    train: of the optimiser; its `step` counts updates.
    ref: `{"lm": ...}` of the reference where it is renewed; None: it is the start.
    sampler: the policy's parameters at the start of the last iterations, the oldest
      first, as many as the sampler is behind.
    beta: of the KL controller, or None.
  """

  step: Array
  train: TrainState
  ref: Params | None
  sampler: tuple[Params, ...]
  beta: Array | None


def create(
  params: Params,
  optimizer: optax.GradientTransformation,
  method_state: State,
  key: Array,
  ema: bool = False,
) -> TrainState:
  """The state before the first step.

  The parameters are copied: the step donates its state, and the caller's arrays (the
  reference, the next run's start) must outlive it. `vmap` it over keys, or over
  stacked parameters, to train several runs at once.

  Args:
    params: see `TrainState`.
    optimizer: see `optim.transform`.
    method_state: `objective.init()`.
    key: typed PRNG key.
    ema: keep a moving average of the weights.
  """
  params = jax.tree.map(jnp.copy, params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    method_state=jax.tree.map(jnp.array, method_state),
    ema=jax.tree.map(jnp.copy, params) if ema else None,
    key=key,
  )


def create_on(
  mesh: jax.sharding.Mesh,
  model: Model,
  params: Params,
  optimizer: optax.GradientTransformation,
  method_state: State,
  key: Array,
  ema: bool = False,
  critic: Model | None = None,
) -> tuple[TrainState, TrainState]:
  """As `create`, every leaf made where it lives on the mesh.

  Returns:
    The state, and its shardings (for `step.make_step`).

  Raises:
    ValueError: a parameter that the mesh does not divide.
  """
  split = rules.param_shardings(mesh, axes(model, params, critic), params)
  whole = rules.replicated(mesh)
  made = functools.partial(create, optimizer=optimizer, ema=ema)
  like = jax.eval_shape(made, params, method_state=method_state, key=key)
  shardings = TrainState(
    step=whole,
    params=split,
    opt_state=place.optimizer_shardings(mesh, optimizer, params, split),
    method_state=jax.tree.map(lambda _: whole, like.method_state),
    ema=split if ema else None,
    key=whole,
  )
  run = jax.jit(made, out_shardings=shardings)
  return run(params, method_state=method_state, key=key), shardings


def axes(model: Model, params: Params, critic: Model | None = None) -> Params:
  """Logical axes of `{"lm": ..., ["value": ...], ["critic": ...]}`."""
  found = {"lm": model.logical_axes()}
  if "value" in params:
    found["value"] = heads.logical_axes()
  if critic is not None:
    own = {"lm": critic.logical_axes(), "value": heads.logical_axes()}
    found[CRITIC] = own
  return found


def with_heads(objective: Objective, params: Params, fresh: Params) -> Params:
  """Parameters with the scalar head that the objective reads, and without one that it
  does not.

  Args:
    objective: with those of all parts.
    params: `{"lm", ["value"]}`.
    fresh: the head where there is none.
  """
  wanted = {"lm": params["lm"]}
  if any("policy.value" in stat.roles for stat in objective.stats):
    wanted["value"] = params.get("value") or fresh
  return wanted


def final_params(state: TrainState) -> Params:
  """The weights to evaluate and export: the average where one is kept."""
  return state.params if state.ema is None else state.ema


def roles(
  params: Params, frozen: Mapping[str, Params], adapter: Adapter | None
) -> dict[str, Params]:
  """What scoring reads of the trained parameters, by role; see `policy`."""
  own = {"policy": policy(params, frozen, adapter)}
  return own | {name: params[name] for name in (CRITIC,) if name in params}


def policy(
  params: Params, frozen: Mapping[str, Params], adapter: Adapter | None
) -> Params:
  """The policy's parameters: those trained, hung on the base where they are adapters.

  Args:
    params: see `TrainState`.
    frozen: role -> parameters; "base" where there is an adapter.
    adapter: of the experiment.
  """
  if adapter is None:
    return params
  return params | {"lm": lora.attach(frozen[BASE]["lm"], params["lm"], adapter)}
