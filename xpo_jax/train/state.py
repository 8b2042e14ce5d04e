"""Defines the state of a run between steps, and the program that the loop drives."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from xpo_jax.config import optim
from xpo_jax.config.experiment import Experiment
from xpo_jax.data.render import Template
from xpo_jax.feedback.critic import CRITIC, Critic
from xpo_jax.models import heads, lora
from xpo_jax.models.lora import Adapter
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import nf4, place, rules
from xpo_jax.types import Array, Objective, Params, State

BASE = "base"  # the frozen parameters that adapters are added to


@struct.dataclass
class TrainState:
  """State of training between two steps; the state of the data is `step` alone.

  Attributes:
    step: steps done, int32 scalar.
    params: `{"lm": the policy's trained parameters}`, all of them or its adapters;
      `"value"` where an objective needs a scalar head; `"critic"`, a decoder with a
      head, where values are of a separate critic.
    opt_state: the optimiser's.
    method_state: state of the objective (`Objective.init`).
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
class RolloutState:
  """State of a run on rollouts between two iterations.

  Attributes:
    step: iterations done, int32 scalar.
    train: training state; its `step` counts optimiser steps.
    ref: `{"lm": ...}` of the reference where it is updated; None where it is fixed.
    sampler: the policy's parameters at the start of the last `Sampling.staleness`
      iterations, the oldest first.
    beta: of the KL controller, or None.
    prompts_taken: prompts sampled so far, int32 scalar, with
      `Rollouts.dynamic_sampling`, where iterations take different numbers; else None.
  """

  step: Array
  train: TrainState
  ref: Params | None
  sampler: tuple[Params, ...]
  beta: Array | None
  prompts_taken: Array | None = None


class Program(NamedTuple):
  """A run before its first step, for the loop.

  Attributes:
    state: before the first step, placed; donated with it. Its `step` counts.
    total: steps, or iterations of rollouts.
    advance: `(state, index) -> (state, metrics)`: the step after `index` steps. The
      metrics may be unfinished device arrays.
    evaluate: `state -> metrics`, `eval/...`, on held-out data; None without.
    line: `(index, numbers, seconds) -> line` of metrics.jsonl of a step, from its
      fetched metrics and its duration.
    batch: `index -> Batch` of a step, to be saved where its loss is not finite; None
      where `advance` refuses such a loss itself.
    policy: `state -> {"lm": ...}`, the weights to evaluate and export, adapters
      merged.
    export: `(state, params) -> (directory ->)`: fetches the weights to the host, on all
      processes, and returns what writes a Hugging Face directory of the policy, of
      adapters one in PEFT's format.
    export_base: `-> (directory ->)`: the same of what adapters belong to, where no
      directory has it; else None.
    model: of the policy.
    tokenizer: of the policy.
    sizes: of the run, for summary.json.
    headline: a line about the sizes, for display.
    shown: names of the metrics to show.
    log_every, checkpoint_every: defaults of `Loop`'s fields.
  """

  state: Any
  total: int
  advance: Callable[[Any, int], tuple[Any, Mapping[str, Any]]]
  evaluate: Callable[[Any], Mapping[str, Any]] | None
  line: Callable[[int, Mapping[str, float], float], dict[str, float]]
  batch: Callable[[int], Any] | None
  policy: Callable[[Any], Params]
  export: Callable[[Any, Params], Callable[[Path], None]]
  export_base: Callable[[], Callable[[Path], None]] | None
  model: Model
  tokenizer: Any
  sizes: Mapping[str, Any]
  headline: str
  shown: tuple[str, ...]
  log_every: int
  checkpoint_every: int | None


class Policy(NamedTuple):
  """The policy of a run at some step, as `Loop.evaluator`'s function is given it.

  `evaluation.policies` samples from it and scores texts with it.

  Attributes:
    model: the architecture.
    params: `{"lm": ...}`, adapters merged, the moving average where there is one. In a
      run they are gone with the next step: keep no reference to them.
    tokenizer: of transformers.
    template: how a prompt becomes text.
    step: steps (or iterations of rollouts) done.
  """

  model: Model
  params: Params
  tokenizer: Any
  template: Template
  step: int


Evaluator = Callable[[Policy], Mapping[str, float]]


def create(
  params: Params,
  optimizer: optax.GradientTransformation,
  method_state: State,
  key: Array,
  ema: bool = False,
  lm_dtypes: Params | None = None,
) -> TrainState:
  """Creates the state before the first step.

  The parameters are copied, because the step donates its state and the caller may use
  the arrays again (the reference, the next run's start). `vmap` over keys, or over
  stacked parameters, trains several runs at once.

  Args:
    params: see `TrainState`.
    optimizer: see `optim.transform`.
    method_state: `objective.init()`.
    key: typed PRNG key.
    ema: keep a moving average of the weights, in at least float32.
    lm_dtypes: of the leaves of `params["lm"]` in memory; None: as they are.
  """
  average = _average(params) if ema else None
  opt_state = optimizer.init(params)  # of the dtypes before they are rounded
  params = place.copied(params)
  if lm_dtypes is not None:
    lm = jax.tree.map(lambda x, dtype: x.astype(dtype), params["lm"], lm_dtypes)
    params = params | {"lm": lm}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=opt_state,
    method_state=jax.tree.map(jnp.array, method_state),
    ema=average,
    key=key,
  )


def _average(params: Params) -> Params:
  return jax.tree.map(
    lambda x: jnp.array(x, jnp.promote_types(x.dtype, jnp.float32)), params
  )


def lm_dtypes(stored: optim.Stored, logical_axes: Params) -> Params | None:
  """The dtypes of a decoder's parameters in memory, of which matrices are `stored`;
  None: as they are."""
  if stored == "float32":
    return None
  return jax.tree.map(
    lambda matrix: jnp.dtype(stored if matrix else "float32"),
    optim.matrices(logical_axes),
  )


def base_in_memory(stored: optim.StoredBase, model: Model, lm: Params) -> Params:
  """The base of adapters as `Precision.base` says, rounded to the nearest.

  Args:
    stored: `Precision.base`.
    model: of the base.
    lm: its parameters.
  """
  matrices = stored
  if stored == "nf4":
    lm, matrices = lora.quantised(model.config, lm), "bfloat16"
  dtypes = lm_dtypes(matrices, model.logical_axes())
  if dtypes is None:
    return lm
  return jax.tree.map(
    lambda dtype, x: x if nf4.is_nf4(x) else x.astype(dtype), dtypes, lm
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
  lm_dtypes: Params | None = None,
) -> tuple[TrainState, TrainState]:
  """Creates the state as `create`, every leaf on its devices of the mesh.

  Returns:
    The state, and its shardings (for `step.make_step`).

  Raises:
    ValueError: a parameter whose size the mesh does not divide.
  """
  make = functools.partial(create, optimizer=optimizer, ema=ema, lm_dtypes=lm_dtypes)
  like = jax.eval_shape(make, params, method_state=method_state, key=key)
  placed = shardings(mesh, model, like, optimizer, critic)
  run = jax.jit(make, out_shardings=placed)
  return run(params, method_state=method_state, key=key), placed


def shardings(
  mesh: jax.sharding.Mesh,
  model: Model,
  state: TrainState,
  optimizer: optax.GradientTransformation,
  critic: Model | None = None,
) -> TrainState:
  """Shardings of a state on a mesh.

  Args:
    mesh: the devices.
    model: what is trained (`lora.trainable_model`).
    state: arrays, or a `jax.ShapeDtypeStruct` of each.
    optimizer: see `optim.transform`.
    critic: of a separate critic, or None.

  Raises:
    ValueError: a parameter whose size the mesh does not divide.
  """
  split = rules.param_shardings(mesh, axes(model, state.params, critic), state.params)
  whole = rules.replicated(mesh)
  return TrainState(
    step=whole,
    params=split,
    opt_state=place.optimizer_shardings(mesh, optimizer, state.params, split),
    method_state=jax.tree.map(lambda _: whole, state.method_state),
    ema=None if state.ema is None else split,
    key=whole,
  )


def transform(
  experiment: Experiment, trained: Model
) -> optax.GradientTransformationExtraArgs:
  """The optimiser of an experiment (`optim.transform`) for the trained model."""
  axes, moments = trained.logical_axes(), experiment.precision.moments
  return optim.transform(experiment.optimizer, axes, moments)


def shapes(
  experiment: Experiment, objective: Objective, trained: Model, lm: Params, width: int
) -> TrainState:
  """Shapes and dtypes of the state before the first step, without a critic.

  Args:
    experiment: the run.
    objective: of the run, its statistics joined with those of auxiliary losses.
    trained: what is trained (`lora.trainable_model`).
    lm: its parameters, or their shapes and dtypes.
    width: D of the hidden states.

  Returns:
    Of each array a `jax.ShapeDtypeStruct`.
  """
  chain, ema = transform(experiment, trained), experiment.optimizer.ema is not None
  dtypes = lm_dtypes(experiment.precision.params, trained.logical_axes())

  def make(lm: Params) -> TrainState:
    params = with_heads(objective, {"lm": lm}, heads.init_value_head(width))
    return create(params, chain, objective.init(), jax.random.key(0), ema, dtypes)

  return jax.eval_shape(make, lm)


def first(
  experiment: Experiment,
  objective: Objective,
  start: Params,
  head: Params,
  trained: Model,
  mesh: jax.sharding.Mesh | None,
  critic: Critic | None = None,
  adapter: Params | None = None,
) -> tuple[TrainState, TrainState | None]:
  """Creates the state before the first step of an experiment, on its mesh.

  Args:
    experiment: the run.
    objective: with the statistics of all its losses (`aux_losses.joined`).
    start: `{"lm", ["value"]}`, the initial weights.
    head: a new scalar head, where one is needed and `start` has none.
    trained: the trained model, decoder or adapters (`lora.trainable_model`).
    mesh: None: one device.
    critic: a separate critic, or None.
    adapter: parameters of the adapter that training goes on with; None: new ones.

  Returns:
    The state, and its shardings; None for one device.
  """
  root = jax.random.key(experiment.seed)
  if experiment.adapter is not None:
    if adapter is None:
      adapter = trained.init(jax.random.fold_in(root, 3))
    start = start | {"lm": adapter}
  params = with_heads(objective, start, head)
  if critic is not None:
    params[CRITIC] = critic.params
  optimizer = transform(experiment, trained)
  dtypes = lm_dtypes(experiment.precision.params, trained.logical_axes())
  method_state, key = objective.init(), jax.random.fold_in(root, 2)
  ema = experiment.optimizer.ema is not None
  if mesh is None:
    return create(params, optimizer, method_state, key, ema, dtypes), None
  model = None if critic is None else critic.model
  return create_on(
    mesh, trained, params, optimizer, method_state, key, ema, model, dtypes
  )


def frozen(mesh: jax.sharding.Mesh | None, model: Model, lm: Params) -> Params:
  """Places frozen parameters of a decoder on the mesh, or on the one device."""
  if mesh is None:
    return jax.tree.map(jnp.asarray, lm)
  return place.place_params(mesh, lm, model.logical_axes())


def frozen_adapter(
  mesh: jax.sharding.Mesh | None,
  model: Model,
  base: Params,
  adapter: Adapter,
  params: Params,
) -> tuple[Params, Model]:
  """Places a frozen adapter on a base that is placed already, without a copy of it.

  Args:
    mesh: None: one device.
    model: of the base.
    base: its parameters.
    adapter: configuration of `params`.
    params: the adapter's.

  Returns:
    The parameters of base and adapter, and their model.
  """
  placed = frozen(mesh, lora.trainable_model(model, adapter), params)
  return lora.attach(base, placed, adapter), lora.attached_model(model, adapter)


def axes(model: Model, params: Params, critic: Model | None = None) -> Params:
  """Makes the logical axes of `{"lm": ..., ["value": ...], ["critic": ...]}`."""
  logical = {"lm": model.logical_axes()}
  if "value" in params:
    logical["value"] = heads.logical_axes()
  if critic is not None:
    logical[CRITIC] = {"lm": critic.logical_axes(), "value": heads.logical_axes()}
  return logical


def with_heads(objective: Objective, params: Params, fresh: Params) -> Params:
  """Adds the scalar head that the objective reads, or removes one that it does not.

  Args:
    objective: with the statistics of all losses.
    params: `{"lm", ["value"]}`.
    fresh: a new head, where there is none.
  """
  wanted = {"lm": params["lm"]}
  if any("policy" in stat.scalar_heads for stat in objective.stats):
    wanted["value"] = params.get("value") or fresh
  return wanted


def final_params(state: TrainState) -> Params:
  """Selects the weights to evaluate and export: the moving average if there is one."""
  return state.params if state.ema is None else state.ema


def roles(
  params: Params, frozen: Mapping[str, Params], adapter: Adapter | None
) -> dict[str, Params]:
  """Makes the trained parameters by role, for scoring; see `policy`."""
  own = {"policy": policy(params, frozen, adapter)}
  return own | {name: params[name] for name in (CRITIC,) if name in params}


def policy(
  params: Params, frozen: Mapping[str, Params], adapter: Adapter | None
) -> Params:
  """Makes the policy's parameters; adapters are attached to the base.

  Args:
    params: see `TrainState`.
    frozen: role -> parameters; "base" where there is an adapter.
    adapter: of the experiment.
  """
  if adapter is None:
    return params
  return params | {"lm": lora.attach(frozen[BASE]["lm"], params["lm"], adapter)}


def merged(
  params: Params, frozen: Mapping[str, Params], adapter: Adapter | None
) -> Params:
  """Makes the policy's parameters with adapters merged, to evaluate and export."""
  if adapter is None:
    return params
  return params | {"lm": lora.merged(frozen[BASE]["lm"], params["lm"], adapter)}
