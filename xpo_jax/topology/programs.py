"""Makes the programs of an experiment for a mesh from shapes alone.

They are those of the trainer: the step, the pass of the reference, the sampler. Batches
are the largest that the configuration allows, every prompt and completion at its limit
and every row full; neither data nor weights are read.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Pretrained, Rollouts, Scratch, Start
from xpo_jax.config.sampling import Sampling
from xpo_jax.data import pack
from xpo_jax.data.pack import Batch
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback.teacher import TEACHER
from xpo_jax.models import (
  decode_state,
  heads,
  hf_checkpoint,
  lora,
  sample,
  token_sampling,
  transformer,
)
from xpo_jax.models.config import Config
from xpo_jax.models.transformer import Model
from xpo_jax.ops import attention
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import nf4, place, rules
from xpo_jax.topology import flops
from xpo_jax.train import (
  aux_losses,
  minibatches,
  references,
  rollouts,
  rollouts_program,
  state,
  step,
  validate,
)
from xpo_jax.train.minibatches import RowSizes
from xpo_jax.types import Objective, Params, TokenStat


@dataclasses.dataclass(frozen=True)
class Program:
  """A jitted function with the shapes of its arguments.

  Attributes:
    name: what it is, for display.
    mesh: that it runs on.
    function: of `jax.jit`.
    arguments: `jax.ShapeDtypeStruct`s with shardings.
    least: FLOPs that it needs at least, on all devices together.
    loops: see `hlo.read`.
    tokens: that it reads or writes, without padding.
    runs: how often the run calls it; None: as often as there are data.
    beside: bytes of one device that hold other arrays of the run meanwhile.
  """

  name: str
  mesh: Mesh
  function: Any
  arguments: tuple
  least: float
  loops: flops.Loops
  tokens: int
  runs: int | None
  beside: int = 0


class _Shapes:
  """Models and abstract parameters of an experiment on a mesh."""

  def __init__(self, experiment: Experiment, mesh: Mesh):
    self.experiment, self.mesh = experiment, mesh
    self.config = config_of(experiment.start)
    self.model = transformer.model(self.config)
    self.adapter = experiment.adapter
    self.trained = lora.trainable_model(self.model, self.adapter)

  def of(self, model: Model) -> Params:
    """Abstract parameters of a model, each with its sharding."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return _with(shapes, rules.param_shardings(self.mesh, model.logical_axes(), shapes))

  def base(self) -> Params:
    """Abstract parameters of the start, in the dtypes of the base of adapters."""
    base = self.of(self.model)
    if self.adapter is None:
      return base
    stored = self.experiment.precision.base
    rounded = jax.eval_shape(
      functools.partial(state.base_in_memory, stored, self.model), base
    )
    axes = self.model.logical_axes()
    return _with(rounded, rules.param_shardings(self.mesh, axes, rounded))

  def reference(self) -> Params:
    """Abstract parameters of the reference: one of its own is float32."""
    if self.experiment.reference is None:
      return self.base()
    return self.of(self.model)

  def policy(self) -> Params:
    """Abstract parameters of the policy's decoder, adapters attached."""
    base = self.base()
    if self.adapter is None:
      return base
    adapter = self.of(self.trained)
    attached = jax.eval_shape(
      functools.partial(lora.attach, adapter=self.adapter), base, adapter
    )
    axes = lora.attached_model(self.model, self.adapter).logical_axes()
    return _with(attached, rules.param_shardings(self.mesh, axes, attached))

  def whole(self, tree: Any) -> Any:
    """Abstract arrays that every device holds whole."""
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        np.shape(x), x.dtype, sharding=rules.replicated(self.mesh)
      ),
      tree,
    )

  def rows(self, tree: Any) -> Any:
    """Abstract arrays whose first axis is rows, split by rows."""
    by_row = place.row_sharding(self.mesh)
    return _with(tree, jax.tree.map(lambda _: by_row, tree))

  def batch(self, batch: Batch) -> Batch:
    """An abstract batch on the mesh."""
    meshes.check_batch(self.mesh, batch.tokens_MRL.shape[1])
    return _with(batch, place.batch_shardings(self.mesh, batch))


def make(
  experiment: Experiment, mesh: Mesh, sampling_mesh: Mesh | None = None
) -> list[Program]:
  """Makes the programs of an experiment.

  Args:
    experiment: the run.
    mesh: that it trains on.
    sampling_mesh: that it samples on; None: the same.

  Raises:
    ValueError: what shapes alone do not say: limits that are None, a start, critic or
      teacher that is a stage, auxiliary losses; a mesh that does not divide sizes.
  """
  shapes = _Shapes(experiment, mesh)
  _check(experiment)
  if isinstance(experiment.data, Rollouts):
    own = shapes if sampling_mesh is None else _Shapes(experiment, sampling_mesh)
    return _of_rollouts(shapes, own, experiment.data)
  return _of_records(shapes, experiment.data)


def config_of(start: Start) -> Config:
  """The decoder's config of a start, without its weights.

  Raises:
    ValueError: a stage, whose config is known when it was trained.
  """
  if isinstance(start, Scratch):
    return start.model
  if isinstance(start, Pretrained):
    return dataclasses.replace(
      hf_checkpoint.read_config(start.directory),
      compute_dtype=start.compute_dtype,
      remat=start.remat,
    )
  raise ValueError(
    "Experiment.start is a Stage; --topology checks one run: name a directory of its "
    "shape (config.json is enough), or check the stage's recipe by itself"
  )


def device_bytes(tree: Any) -> int:
  """Bytes of abstract arrays on one device."""
  return sum(
    nf4.nbytes(x.sharding.shard_shape(x.shape), x.dtype)
    for x in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )


def _check(experiment: Experiment) -> None:
  if experiment.aux_losses:
    raise ValueError(
      "Experiment.aux_losses: --topology compiles the run without them; leave them out "
      "and add their share of the step"
    )
  if isinstance(experiment.data, Rollouts) and experiment.data.critic_init is not None:
    raise ValueError(
      "Rollouts.critic_init: --topology compiles values of the policy's own head; "
      "leave it out, and add the critic's parameters, gradients and moments"
    )


def _with(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s), tree, shardings
  )


def _state(shapes: _Shapes, objective: Objective) -> tuple[Any, Any]:
  """The abstract state before the first step, and its shardings."""
  experiment, trained = shapes.experiment, shapes.trained
  like = state.shapes(
    experiment, objective, trained, shapes.of(trained), shapes.config.width
  )
  chain = state.transform(experiment, trained)
  placed = state.shardings(shapes.mesh, shapes.trained, like, chain)
  return _with(like, placed), placed


def _frozen(shapes: _Shapes, objective: Objective) -> tuple[dict, dict[str, Model]]:
  """Abstract frozen parameters of the step by role, and all models."""
  model, experiment = shapes.model, shapes.experiment
  models = {"policy": model, references.ROLE: model}
  frozen = {}
  if aux_losses.read_reference(objective, ()):
    frozen[references.ROLE] = {"lm": shapes.reference()}
  if experiment.teacher is not None:
    models[TEACHER] = transformer.model(config_of(experiment.teacher))
    if aux_losses.read_teacher(objective, ()):
      frozen[TEACHER] = {"lm": shapes.of(models[TEACHER])}
  for one in experiment.references:
    models[one.role], frozen[one.role] = model, {"lm": shapes.of(model)}
  if shapes.adapter is not None:
    frozen[state.BASE] = {"lm": shapes.base()}
  return frozen, models


def _step(
  shapes: _Shapes,
  objective: Objective,
  build: Callable[..., Objective],
  batch: Batch,
  steps: int,
  hparams: Mapping[str, float] = {},
) -> tuple[Any, tuple, float]:
  """The step, its abstract arguments, and its least FLOPs."""
  experiment = shapes.experiment
  first, placed = _state(shapes, objective)
  frozen, models = _frozen(shapes, objective)
  take = step.make_step(
    build,
    models,
    experiment.optimizer,
    steps,
    mesh=shapes.mesh,
    shardings=placed,
    adapter=shapes.adapter,
    moments=experiment.precision.moments,
  )
  numbers = shapes.whole(step.hparams(experiment.optimizer, **hparams))
  # Forward, and the gradients of activations and, but for a frozen base, of weights.
  passes = 3 if shapes.adapter is None else 2
  logits = any("policy" in stat.roles for stat in step.stats(objective))
  least = passes * _forward(shapes.config, batch, logits)
  for role in frozen:
    if role != state.BASE:
      least += _forward(models[role].config, batch, True)
  return take, (first, frozen, shapes.batch(batch), numbers), least


def _forward(config: Config, batch: Batch, logits: bool) -> float:
  """The least FLOPs of a forward pass on a batch."""
  position = batch.position_MRL[batch.segment_MRL > 0]
  return flops.forward(config, position, float(batch.valid_MRC.sum()) * logits)


def _loops(config: Config, batch: Batch, mesh: Mesh) -> flops.Loops:
  """Trips of the loops over blocks of keys, the mean over the rows of a batch."""
  length = batch.tokens_MRL.shape[-1]
  block = transformer.attention_block(length, meshes.platform(mesh))
  trips = 0.0
  if block is not None:
    one = jax.tree.map(lambda x: np.asarray(x[:1, 0]), _ids(batch))
    one = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, -length % block))), one)
    windows = [window or None for window in config.windows] or [None]
    pairs = {
      w: int(attention.block_pairs(one, block, w).start[-1]) * block / one.key.size
      for w in dict.fromkeys(windows)
    }
    trips = sum(pairs[w] for w in windows) / len(windows)

  def loops(path: str) -> float:
    if attention.KEY_BLOCKS in path:
      return trips
    raise ValueError(f"the compiled program has a loop of unknown length: {path}")

  return loops


def _ids(batch: Batch) -> attention.Ids:
  rows = (batch.segment_MRL, batch.branch_MRL, batch.position_MRL)
  ids = attention.ids(*(jnp.asarray(x[:, 0]) for x in rows))
  return jax.tree.map(lambda x: np.asarray(x)[:, None], ids)


def _limits(prompt: int | None, completion: int | None, where: str) -> tuple[int, int]:
  if prompt is None or completion is None:
    raise ValueError(
      f"{where}.limits are prompt={prompt} and completion={completion}; --topology "
      "compiles batches at the limits: set both"
    )
  return prompt, completion


def _of_records(shapes: _Shapes, data: Data) -> list[Program]:
  experiment = shapes.experiment
  objective = experiment.objective.build()
  K = objective.layout.completions
  if K is None:
    raise ValueError(
      f"{objective.name} takes any number of completions, which only the data say; "
      "--topology compiles objectives of pairs, demonstrations and rated completions"
    )
  P, T = _limits(data.limits.prompt, data.limits.completion, "Data")
  batch = _full_batch(objective, data, P, T, K)
  cached = references.cacheable(objective)
  shape = np.zeros_like(batch.mask_MBKT)
  steps = data.steps or 1
  take, arguments, least = _step(
    shapes,
    objective,
    experiment.objective.build,
    batch.replace(ref={stat.field: shape for stat in cached}),
    steps,
  )
  loops = _loops(shapes.config, batch, shapes.mesh)
  tokens = int((batch.segment_MRL > 0).sum())
  programs = [
    Program("step", shapes.mesh, take, arguments, least, loops, tokens, data.steps)
  ]
  if cached:
    programs.append(
      _scoring(
        shapes,
        {references.ROLE: shapes.model},
        cached,
        batch,
        data.steps,
        device_bytes(arguments[0].opt_state),
      )
    )
  return programs


def _full_batch(objective: Objective, data: Data, P: int, T: int, K: int) -> Batch:
  """A step of full rows."""
  if data.row_length is not None and data.row_length < P + K * T:
    raise ValueError(
      f"Data.row_length is {data.row_length}, a group at the limits has {P} + {K} x "
      f"{T} = {P + K * T} tokens; raise row_length, or lower Data.limits"
    )
  fields = {
    column.removesuffix("_BK"): np.zeros(K, np.float32)
    for column in objective.columns
    if column.endswith("_BK")
  }
  token_fields = {
    column.removesuffix("_BKT"): (np.zeros(T, np.float32),) * K
    for column in objective.columns
    if column.endswith("_BKT")
  }
  ids = np.zeros(P + T, np.int32)
  example = Example(
    "at the limits",
    ids[:P],
    (ids[:T],) * K,
    objective.layout,
    fields=fields,
    token_fields=token_fields,
  )
  groups = 1
  if data.row_length is not None:
    groups = data.row_length // example.tokens
  groups = min(groups, data.groups_per_row or groups)
  return pack.plan([example] * (groups * data.rows_per_step), data.sizes)[0]


def _scoring(
  shapes: _Shapes,
  models: Mapping[str, Model],
  stats: tuple[TokenStat, ...],
  batch: Batch,
  runs: int | None,
  beside: int,
) -> Program:
  """The pass that records statistics of frozen models, or of the sampler."""
  params = {}
  least = 0.0
  reads = {role for stat in stats for role in stat.decoders}
  models = {role: model for role, model in models.items() if role in reads}
  for role, model in models.items():
    lm = shapes.reference() if role == references.ROLE else shapes.of(model)
    params[role] = {"lm": lm}
    if any(role in stat.scalar_heads for stat in stats):
      params[role]["value"] = shapes.whole(
        jax.eval_shape(lambda: heads.init_value_head(shapes.config.width))
      )
    logits = any(role in stat.roles for stat in stats)
    least += _forward(model.config, batch, logits)
  return Program(
    "reference pass",
    shapes.mesh,
    references.recorder(models, stats, shapes.mesh),
    (params, shapes.batch(batch)),
    least,
    _loops(shapes.config, batch, shapes.mesh),
    int((batch.segment_MRL > 0).sum()),
    runs,
    beside,
  )


def _of_rollouts(shapes: _Shapes, sampler: _Shapes, data: Rollouts) -> list[Program]:
  experiment, sampling = shapes.experiment, data.sampling
  build = rollouts_program.at_temperature(experiment.objective.build, data.temperature)
  if data.sampler_correction is not None:
    build = rollouts_program.corrected(build, data.sampler_correction)
  objective = build()
  P, T = _limits(data.prompts.limits.prompt, data.max_completion_tokens, "Prompts")
  sizes = RowSizes(data.rows_per_step, data.microbatches, P, T)
  stats = rollouts_program.recorded_stats(objective, sampling)
  pairs = validate.pair_construction_of(experiment)
  batch = minibatches.largest(data, np.zeros(P, np.int32), stats, pairs, sizes)
  if batch is None:
    raise ValueError(
      f"Rollouts.pair_construction {data.pair_construction} selects no completions at "
      "the limits; --topology needs one that does"
    )
  updates = data.iterations * data.minibatches * data.ppo_epochs
  beta = {}
  if data.kl_controller is not None:
    beta["beta"] = float(data.kl_controller.build().beta)
  take, arguments, least = _step(shapes, objective, build, batch, updates, beta)
  loops = _loops(shapes.config, batch, shapes.mesh)
  tokens = int((batch.segment_MRL > 0).sum())
  attached = lora.attached_model(shapes.model, shapes.adapter)
  models = {"policy": attached, references.ROLE: shapes.model}
  if experiment.teacher is not None:
    models[TEACHER] = transformer.model(config_of(experiment.teacher))
  plain = batch.replace(ref={}, fields={})
  scored = data.iterations * data.minibatches
  # All the while the run holds its state, the start, and older samplers.
  first, frozen = arguments[:2]
  start = 0 if shapes.adapter is not None else device_bytes(shapes.of(shapes.model))
  older = data.sampling.staleness * device_bytes(first.params)
  held = device_bytes((first, frozen.get(state.BASE))) + start + older
  policy = device_bytes(shapes.policy())
  in_step = start if references.ROLE in frozen else 0
  shared = 0 if sampler is not shapes else device_bytes(_uncast(shapes, sampling))
  return [
    _sampler(sampler, data, P, T, held - shared),
    _scoring(shapes, models, stats, plain, scored, held - (start or policy)),
    Program(
      "step",
      shapes.mesh,
      take,
      arguments,
      least,
      loops,
      tokens,
      updates,
      start - in_step + older,
    ),
  ]


def _uncast(shapes: _Shapes, sampling: Sampling) -> list[Any]:
  """The policy's abstract parameters that sampling reads without a copy."""
  params, dtype = jax.tree.leaves(shapes.policy()), sampling.weights_dtype
  return [x for x in params if dtype is None or rollouts.dtype_of(x, dtype) == x.dtype]


def _sampler(shapes: _Shapes, data: Rollouts, P: int, T: int, beside: int) -> Program:
  """The sampler on the prompts that are decoded together."""
  sampling, config = data.sampling, shapes.config
  if sampling.slots is not None:
    raise ValueError(
      f"Sampling.slots is {sampling.slots}; --topology compiles the sampler of whole "
      "batches: set prompts_at_once instead"
    )
  K, mesh = sampling.completions, shapes.mesh
  B = sampling.prompts_at_once or data.prompts_per_iteration
  B = meshes.padded_rows(mesh, B)
  params = shapes.policy()
  if sampling.weights_dtype is not None:
    params = jax.tree.map(
      lambda x: x.update(dtype=rollouts.dtype_of(x, sampling.weights_dtype)), params
    )
  rule = token_sampling.Rule(
    stop=jnp.zeros(1, jnp.int32),
    temperature=jnp.float32(sampling.temperature),
    top_k=None if sampling.top_k is None else jnp.int32(sampling.top_k),
    top_p=None if sampling.top_p is None else jnp.float32(sampling.top_p),
    share=None,
    exploration_temperature=None,
  )
  decoder = decode_state.Decoder((params,), shapes.whole(rule), (config,), False, mesh)
  key = shapes.whole(jax.eval_shape(lambda: jax.random.key(0)))
  prompt_BP, length_B = np.zeros((B, P), np.int32), np.zeros(B, np.int32)
  prompt_BP, length_B, row_B = shapes.rows((prompt_BP, length_B, length_B))
  attached = lora.attached_model(shapes.model, shapes.adapter)

  def draw(decoder, *prompts):
    tables = functools.partial(sample.gather_tables, model=attached, mesh=mesh)
    decoder = decoder.replace(params=tuple(map(tables, decoder.params)))
    return sample.decode(decoder, *prompts, completions=K, max_completion_tokens=T)

  read = np.tile(np.arange(P), B)
  written = np.tile(np.arange(P, P + T), B * K)
  least = flops.forward(config, read, B)
  least += flops.forward(config, written, written.size)
  prompts = _prompt_loops(config, P, shapes.mesh)

  def loops(path: str) -> float:
    return prompts if attention.KEY_BLOCKS in path else float(T - 1)

  count = -(-data.prompts_per_iteration // B)
  return Program(
    "sampler",
    mesh,
    jax.jit(draw),
    (decoder, prompt_BP, length_B, key, row_B),
    least,
    loops,
    int(read.size + written.size),
    data.iterations * count,
    beside,
  )


def _prompt_loops(config: Config, P: int, mesh: Mesh) -> float:
  """Mean number of key blocks of a block of a prompt at the limit."""
  block = transformer.attention_block(P, meshes.platform(mesh))
  return 0.0 if block is None else (-(-P // block) + 1) / 2
