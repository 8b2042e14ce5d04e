"""Validates a run before anything of it is made."""

import dataclasses
import tempfile
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax import scored
from xpo_jax.config import split_overlap
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import (
  Experiment,
  MeshShape,
  Rollouts,
  Scratch,
  Stage,
  Start,
  stages,
)
from xpo_jax.data.sources import Loaded
from xpo_jax.feedback import critic, teacher
from xpo_jax.models import hf_checkpoint, peft, transformer, weights_source
from xpo_jax.models.config import Config, Remat
from xpo_jax.ops import sampler_correction
from xpo_jax.ops.kl_control import Controller, Observation
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import rules
from xpo_jax.testing import toy
from xpo_jax.train import aux_losses, loading, metrics, pair_construction, references
from xpo_jax.train.loading import Datasets
from xpo_jax.train.pair_construction import PairConstruction
from xpo_jax.train.state import Evaluator
from xpo_jax.types import Layout, Objective

_RECORDED = frozenset(
  {"reward_BK", "old_logp_BKT", "sampler_logp_BKT", "old_value_BKT"}
)


def make_mesh(shape: MeshShape) -> jax.sharding.Mesh | None:
  """Makes the mesh over all devices, those of every process; None for one device.

  Raises:
    ValueError: another number of devices; one device, and several processes.
  """
  sizes = mesh_sizes(shape, jax.device_count())
  if sizes != (1, 1, 1):
    return meshes.make_mesh(*sizes)
  if jax.process_count() > 1:
    raise ValueError(
      f"Experiment.mesh is one device for {jax.process_count()} processes; leave "
      "MeshShape.data out, or start one process"
    )
  return None


def sampling_mesh(experiment: Experiment) -> jax.sharding.Mesh | None:
  """Makes the mesh that a run on rollouts samples on; None for one device.

  Raises:
    ValueError: see `make_mesh`; a `Sampling.mesh` where one of the two is one device.
  """
  run, shape = make_mesh(experiment.mesh), experiment.data.sampling.mesh
  if shape is None:
    return run
  try:
    own = make_mesh(shape)
  except ValueError as error:
    raise ValueError(f"Sampling.mesh: {error}") from error
  if run is None or own is None:
    raise ValueError(
      f"Sampling.mesh is {shape} and Experiment.mesh {experiment.mesh}: "
      f"{'the run' if run is None else 'the sampler'} would have one device of "
      f"{jax.device_count()}; leave Sampling.mesh None"
    )
  return own


def mesh_sizes(shape: MeshShape, devices: int) -> tuple[int, int, int]:
  """Sizes of the axes data, fsdp and tensor on so many devices; the one that is None
  takes the devices that the others leave, at least 1."""
  if shape.fsdp is None:
    data = shape.data or 1
    return data, max(devices // (data * shape.tensor), 1), shape.tensor
  remaining = max(devices // (shape.fsdp * shape.tensor), 1)
  return shape.data or remaining, shape.fsdp, shape.tensor


def check_common(experiment: Experiment, data: Data | None, datasets: Datasets) -> None:
  """Validates what runs on records and on rollouts have in common.

  Args:
    experiment: the run.
    data: its records; None of a run on rollouts.
    datasets: see `loading.load`.

  Raises:
    ValueError: a mesh that does not fit the devices or the batch; remat "offload" on a
      backend without pinned memory of the host; wandb on and not
      installed; an evaluator that cannot be made; an adapter to go on with that the
      start has not; a teacher that nothing reads, that is missing, or of another
      vocabulary than the start's; see `aux_losses.check` and `split_overlap.check`.
  """
  mesh = make_mesh(experiment.mesh)
  if experiment.loop.wandb is not None:
    metrics.check_wandb()
  evaluator_of(experiment)
  sizes = [(data.rows_per_step, data.microbatches)] if data is not None else []
  sizes += [
    (loss.data.rows_per_step, loss.data.microbatches) for loss in experiment.aux_losses
  ]
  if mesh is not None:
    for rows_per_step, microbatches in sizes:
      meshes.check_batch(mesh, rows_per_step, microbatches)
  aux_losses.check(experiment.aux_losses, datasets)
  _check_remat(experiment.start)
  _check_teacher(experiment)
  _check_continued(experiment)
  _check_references(experiment)
  split_overlap.check(experiment)


def pair_construction_of(experiment: Experiment) -> PairConstruction:
  """Builds the pair construction of an experiment; default: by the objective's layout.

  Raises:
    ValueError: none is given, and the layout has no default.
  """
  data, objective = experiment.data, experiment.objective.build()
  if data.pair_construction is not None:
    return data.pair_construction.build()
  if objective.layout not in pair_construction.DEFAULTS:
    known = ", ".join(layout.name for layout in pair_construction.DEFAULTS)
    raise ValueError(
      f"{objective.name} needs layout {objective.layout.name}; rollouts become "
      f"{known}, or what Rollouts.pair_construction makes of them"
    )
  return pair_construction.DEFAULTS[objective.layout]()


def evaluator_of(experiment: Experiment) -> Evaluator | None:
  """Makes the evaluation of a run by `Loop.evaluator`; None where it has none, or where
  a stage among its arguments is not trained yet.

  Raises:
    ValueError: it makes no function, or refuses its arguments.
  """
  config = experiment.loop.evaluator
  if config is None or any(stages(config)):
    return None
  function = config.build()
  if not callable(function):
    raise ValueError(
      f"Loop.evaluator is {config.name}, which makes a {type(function).__name__}; name "
      "a function that makes a function of the policy"
    )
  return function


def check_rollouts(experiment: Experiment, datasets: Datasets) -> None:
  """Validates a run on rollouts before anything is made.

  Args:
    experiment: the run.
    datasets: see `loading.load`.

  Raises:
    ValueError: an objective that reads columns without a source in rollouts, needs
      another layout than the pair construction's, samples of the current policy where
      they are of an older one, another `Sampling.column0_source` or
      another `Feedback.kind`, or whose gradient does not depend on rewards with so few
      completions; win rates of one completion; an averaged opponent without an average;
      a controller of another beta than the objective's, or that may reduce it to 0 in
      one iteration; a function in the wrong field; a critic for an objective without
      values; a mesh that does not fit; see `check_common`.
  """
  data = experiment.data
  objective, pairs = experiment.objective.build(), pair_construction_of(experiment)
  if not isinstance(pairs, PairConstruction):
    raise ValueError(
      f"Rollouts.pair_construction is {data.pair_construction.name}, which makes "
      f"{type(pairs).__name__}; name a function that makes a PairConstruction, such as "
      "pair_construction.best_worst"
    )
  if data.sampler_correction is not None:
    objective = _corrected(objective, data)
  name, completions = objective.name, data.sampling.completions
  if pairs.layout is not objective.layout:
    raise ValueError(
      f"{name} needs layout {objective.layout.name}, the pair construction makes "
      f"{pairs.layout.name}; see xpo_jax.train.pair_construction"
    )
  brought = _RECORDED | pairs.brings
  unknown = sorted(objective.columns - brought)
  if unknown:
    raise ValueError(
      f"{name} requires the column {unknown[0]}, which rollouts do not bring; they "
      f"bring {', '.join(sorted(brought))}"
    )
  roles = {role for stat in objective.stats for role in stat.decoders}
  if roles - {"policy", references.ROLE, teacher.TEACHER}:
    raise ValueError(
      f"{name} reads the roles {sorted(roles)}; a run on rollouts has a policy, a ref "
      "and, with Experiment.teacher, a teacher"
    )
  source = data.sampling.column0_source
  if source != objective.column0_source:
    raise ValueError(
      f"Sampling.column0_source is {source!r}, and {name} is made for "
      f"{objective.column0_source!r} in column 0; set Sampling.column0_source to "
      f"{objective.column0_source!r}"
    )
  if objective.on_policy and not data.allow_off_policy:
    _check_on_policy(name, data)
  if data.sampling.teacher_share != objective.teacher_share:
    raise ValueError(
      f"Sampling.teacher_share is {data.sampling.teacher_share}, and {name} corrects "
      f"for {objective.teacher_share}; give both the same"
    )
  _check_feedback(objective, experiment)
  _check_opponent(experiment)
  taught = teacher.reads(objective.stats)  # by more than rewards
  if completions == 1 and not taught and not _sees_rewards(objective, pairs):
    raise ValueError(
      f"{name} learns nothing from the rewards of one completion: its baseline or its "
      "pair is made of the others of the prompt; set Sampling.completions to 2 or more "
      "(is 1)"
    )
  if data.kl_controller is not None:
    _check_controller(experiment)
  if data.critic_init is not None:
    critic.check_objective(objective, data.critic_init)
    if isinstance(data.critic_init, str):
      critic.check(data.critic_init)
  mesh = make_mesh(experiment.mesh)
  if mesh is not None:
    meshes.check_batch(mesh, data.rows_per_step, data.microbatches)
  sampling_mesh(experiment)
  check_common(experiment, None, datasets)


def check_start(experiment: Experiment, loaded: Loaded, datasets: Datasets) -> None:
  """Refuses prompts, sampling and meshes that the start does not support.

  Args:
    experiment: the run.
    loaded: its prompts' records.
    datasets: see `loading.load`.

  Raises:
    ValueError: see `loading.check_room`; a mesh, the run's or the sampler's, that does
      not divide the model.
  """
  config, directory = _decoder(experiment.start)
  _check_divisible(experiment, config)
  longest = 1
  if config.position_limit is not None and directory is not None:
    tokenizer = hf_checkpoint.read_tokenizer(directory)
    with tempfile.TemporaryDirectory() as scratch:  # for lists of bad rows
      chosen, _, _ = loading.prompt_sets(
        experiment, loaded, tokenizer, Path(scratch), datasets
      )
    longest = chosen.width
  loading.check_room(config, experiment.data.sampling, longest)


def _corrected(objective: Objective, data: Rollouts) -> Objective:
  """The objective with the run's correction for its sampler.

  Raises:
    ValueError: no correction of it is possible.
  """
  if data.sampling.column0_source == "reference":
    raise ValueError(
      "Rollouts.sampler_correction is set and Sampling.column0_source 'reference': "
      "column 0 is no sample of the policy, and no weight makes it one; set "
      "sampler_correction to None"
    )
  try:
    return sampler_correction.corrected(
      objective, **dataclasses.asdict(data.sampler_correction)
    )
  except ValueError as error:
    raise ValueError(f"Rollouts.sampler_correction: {error}") from error


def _check_on_policy(name: str, data: Rollouts) -> None:
  """Refuses updates on samples of another policy than the one that is updated."""
  fields = {
    "Rollouts.minibatches": (data.minibatches, 1),
    "Rollouts.ppo_epochs": (data.ppo_epochs, 1),
    "Sampling.staleness": (data.sampling.staleness, 0),
  }
  for field, (value, allowed) in fields.items():
    if value != allowed:
      raise ValueError(
        f"{field} is {value}: {name} has no importance ratio, so its gradient is right "
        f"for samples of the current policy alone; set {field} to {allowed}, or "
        "Rollouts.allow_off_policy=True to accept the bias"
      )


def _decoder(weights: Start) -> tuple[Config, str | None]:
  """Config of weights, those of a stage too, and the directory of their tokenizer; None
  where the run trains one."""
  while isinstance(weights, Stage):
    weights = weights.experiment.start
  if isinstance(weights, Scratch):
    return weights.model, weights.tokenizer
  return hf_checkpoint.read_config(weights.directory), weights.directory


def _check_divisible(experiment: Experiment, config: Config) -> None:
  """Refuses a mesh, the run's or the sampler's, that does not divide the decoder."""
  named = {
    "Experiment.mesh": make_mesh(experiment.mesh),
    "Sampling.mesh": sampling_mesh(experiment),
  }
  if not any(named.values()):
    return
  model = transformer.model(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  for field, mesh in named.items():
    if mesh is not None:
      try:
        rules.param_shardings(mesh, model.logical_axes(), shapes)
      except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _check_remat(start: Start) -> None:
  """Refuses to offload activations where the devices reach no pinned host memory."""
  while isinstance(start, Stage):
    start = start.experiment.start
  remat = start.model.remat if isinstance(start, Scratch) else start.remat
  if remat != "offload":
    return
  device = jax.local_devices()[0]
  kinds = [memory.kind for memory in device.addressable_memories()]
  if transformer.HOST_MEMORY not in kinds:
    field = "Config.remat" if isinstance(start, Scratch) else "Pretrained.remat"
    raise ValueError(
      f'{field} is "offload", which needs the memory {transformer.HOST_MEMORY!r}; '
      f"{device.device_kind} has {', '.join(kinds)}; allowed here: "
      f"{', '.join(name for name in get_args(Remat) if name != remat)}"
    )


def _check_teacher(experiment: Experiment) -> None:
  given, data = experiment.teacher, experiment.data
  losses = [config.build() for config in experiment.aux_losses]
  objective = aux_losses.joined(experiment.objective.build(), losses)
  mixed = isinstance(data, Rollouts) and data.sampling.teacher_share > 0
  teacher.check_objective(objective, given is not None, mixed)
  if given is not None:
    vocabs = (_decoder(weights)[0].vocab for weights in (given, experiment.start))
    teacher.check_vocab(*vocabs)


def _check_continued(experiment: Experiment) -> None:
  adapter, start = experiment.adapter, experiment.start
  if adapter is None or not adapter.continued:
    return
  config, directory = _decoder(start)
  own, name = None, "random weights"
  if isinstance(start, Stage):
    own, name = start.experiment.adapter, f"a stage of {start.experiment.objective}"
  elif not isinstance(start, Scratch):
    name = directory
    if hf_checkpoint.is_adapter(directory):
      own = peft.read_form(weights_source.directory(directory), config)
  loading.check_continued(adapter, own, config, name)


def _check_references(experiment: Experiment) -> None:
  """Refuses a role that has no weights, and weights of a role that nothing reads."""
  losses = [config.build() for config in experiment.aux_losses]
  objective = aux_losses.joined(experiment.objective.build(), losses)
  read = {role for stat in objective.stats for role in stat.decoders}
  read -= {"policy", references.ROLE, teacher.TEACHER, critic.CRITIC}
  given = [one.role for one in experiment.references]
  for role in sorted(read.difference(given)):
    raise ValueError(
      f"{objective.name} reads the reference {role!r}, and Experiment.references has "
      f"{given or 'none'}; give its weights as NamedReference({role!r}, "
      f"Pretrained(DIR)), in a shell --references {role}=DIR"
    )
  for role in given:
    if role not in read or given.count(role) > 1:
      raise ValueError(
        f"Experiment.references has {given}, and {objective.name} reads "
        f"{sorted(read) or 'none of its own'}; give each of these once and no other"
      )


def _check_feedback(objective: Objective, experiment: Experiment) -> None:
  feedback, sampling = experiment.data.feedback, experiment.data.sampling
  K, opponent = sampling.completions, sampling.opponent
  if objective.reward_kind != "any" and feedback.kind != "win_rates":
    raise ValueError(
      f"{objective.name} learns from win rates and Feedback.kind is {feedback.kind!r}; "
      'set it to "win_rates", and Feedback.source to a preference'
    )
  if feedback.kind == "win_rates" and opponent is None and K == 1:
    raise ValueError(
      "Sampling.completions is 1 and Feedback.kind 'win_rates': without an opponent it "
      "can beat nobody; set completions to 2 or more, or Sampling.opponent"
    )
  if objective.reward_kind != "pairwise":
    return
  if feedback.include_self or opponent is not None or K != 2:
    raise ValueError(
      f"{objective.name} learns from the probabilities of two completions to beat one "
      f"another, and Feedback.include_self is {feedback.include_self}, "
      f"Sampling.completions {K}, Sampling.opponent {opponent}; set them to False, 2 "
      "and None"
    )


def _check_opponent(experiment: Experiment) -> None:
  opponent = experiment.data.sampling.opponent
  if opponent is None or opponent.of != "average":
    return
  if not experiment.optimizer.ema:
    raise ValueError(
      'Opponent.of is "average"; set Optimizer.ema, the decay of that average'
    )
  if experiment.adapter is not None:
    raise ValueError(
      'Opponent.of is "average" and Experiment.adapter is set: the mean of an '
      "adapter's factors is not that of the weights; set Opponent.of to "
      '"sampler", or adapter to None'
    )


def _check_controller(experiment: Experiment) -> None:
  data = experiment.data
  config = data.kl_controller
  controller = config.build()
  if not isinstance(controller, Controller):
    raise ValueError(
      f"Rollouts.kl_controller is {config.name}, which makes "
      f"{type(controller).__name__}; name a function that makes a "
      "kl_control.Controller, such as kl_control.adaptive_kl"
    )
  first = controller.beta
  name, hparams = experiment.objective.name, experiment.objective.hparams
  if not isinstance(hparams.get("beta"), float | int):
    raise ValueError(
      f"kl_controller: {name} has no number beta to control, it has {hparams}"
    )
  if hparams["beta"] != first:
    raise ValueError(
      f"kl_controller starts at beta {first}, {name} has beta {hparams['beta']}; give "
      "both the same"
    )
  # With dynamic sampling, as many rounds as an iteration may take.
  each = data.prompts_per_iteration * (data.dynamic_sampling or 1)
  K = data.sampling.completions
  # A very low estimate of the KL: the largest decrease of beta.
  lowest = float(controller.update(first, Observation(-1e9, each * K)))
  if not lowest > 0:
    raise ValueError(
      f"kl_controller: {config.name} may take beta from {first} to {lowest:g} in one "
      f"iteration of {each * K} completions ({each} prompts x "
      f"Sampling.completions {K}), and beta must stay > 0; with "
      f"{dict(config.arguments)} raise horizon above max_error x {each * K}"
    )


def _sees_rewards(objective: Objective, pairs: PairConstruction) -> bool:
  """Whether the gradient depends on rewards where a prompt has one completion."""
  record = toy.scored_for(objective._replace(layout=Layout.RATED))
  length_BK, present_BK = np.asarray(record.length_BK), np.asarray(record.present_BK)
  least, most = (
    pairs.choose(np.full_like(present_BK, reward), present_BK, length_BK)
    for reward in (-1e30, 1e30)
  )
  if least != most:  # chosen or labelled by its reward alone
    return True
  if not least or objective.layout is not Layout.SAMPLED:
    return False
  reward_BK = np.asarray(record.reward_BK)

  def loss(logp_BKT, reward_BK):
    changed = record.replace(logp_BKT=logp_BKT, reward_BK=reward_BK)
    key = jax.random.key(0)
    return scored.evaluate(objective, changed, objective.init(), key).loss

  slope = jax.jit(jax.grad(loss))
  other_BK = reward_BK[::-1] + np.arange(len(reward_BK), dtype=np.float32)[:, None]
  slopes = [slope(record.logp_BKT, x_BK) for x_BK in (reward_BK, other_BK)]
  return bool(jnp.any(slopes[0] != slopes[1]))
