"""Everything a run needs, made and checked before the first compile."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax

from xpo_jax.config import optim, yaml_file
from xpo_jax.config.experiment import Data, Experiment, MeshShape, Scratch
from xpo_jax.config.on_policy import OnlineExperiment
from xpo_jax.data import audit, collate, pack
from xpo_jax.data.pack import Batch, Batches
from xpo_jax.models import heads, lora, transformer
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import distributed, place
from xpo_jax.sharding import mesh as meshes
from xpo_jax.train import (
  aux_losses,
  loading,
  metrics,
  progress,
  references,
  state,
  step,
)
from xpo_jax.train.loading import Datasets
from xpo_jax.train.references import Cache
from xpo_jax.train.state import TrainState
from xpo_jax.types import Mean, Objective, Params

COUNTS = "data.json"
JUDGES, _START = "judges_sha256", "start_sha256"


class Source(NamedTuple):
  """Batches and the reference's statistics for them.

  Attributes:
    batches: by step.
    cache: of the reference, or None where the objective reads none that can be cached.
    place: puts a batch on the mesh.
  """

  batches: Batches
  cache: Cache | None
  place: Callable[[Batch], Batch]

  def batch(self, index: int) -> Batch:
    """The batch of a step, with cached statistics, where the step wants it."""
    return self.place(references.fill(self.cache, self.batches[index]))

  def following(self, done: int) -> Iterator[Batch]:
    """The batches after `done` steps; a thread makes the next ones meanwhile."""
    dataset = grain.MapDataset.source(self.batches).slice(slice(done, None))
    dataset = dataset.map(functools.partial(references.fill, self.cache))
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return map(self.place, dataset.to_iter_dataset(ahead))


class Run(NamedTuple):
  """A run before its first step.

  Attributes:
    experiment: what it is.
    objective: built.
    model: of the policy.
    tokenizer: of the policy.
    train: training batches.
    beside: the parts and their batches.
    held_out: held-out batches, or None.
    frozen: role -> parameters that every step reads; "base", what adapters hang on,
      and "ref" are then one and the same.
    state: the state before step 1.
    step: see `step.make_step`.
    evaluate: see `step.make_evaluation`.
    hparams: see `step.hparams`.
    counts: the data's audit, and the digest of what is trained on.
  """

  experiment: Experiment
  objective: Objective
  model: Model
  tokenizer: Any
  train: Source
  beside: aux_losses.Beside
  held_out: Source | None
  frozen: Mapping[str, Params]
  state: TrainState
  step: step.Step
  evaluate: Callable[..., dict[str, Mean]]
  hparams: Mapping[str, Any]
  counts: Mapping[str, Any]


def check(experiment: Experiment, datasets: Datasets) -> jax.sharding.Mesh | None:
  """What can be refused before anything is made: mesh, batch, missing packages, parts.

  Returns:
    The mesh; None for one device.

  Raises:
    ValueError: a mesh that does not fit the devices or the batch; wandb asked for and
      not installed; a part that cannot be (`aux_losses.check`).
  """
  mesh = make_mesh(experiment.mesh)
  if experiment.loop.wandb is not None:
    metrics.check_wandb()
  for data in (experiment.data, *(part.data for part in experiment.parts)):
    if mesh is not None:
      meshes.check_batch(mesh, data.rows_per_step, data.microbatches)
  aux_losses.check(experiment.parts, datasets)
  return mesh


def make_mesh(shape: MeshShape) -> jax.sharding.Mesh | None:
  """The mesh over all devices; None where one device is asked for, or there."""
  rest = max(jax.device_count() // (shape.fsdp * shape.tensor), 1)
  data = shape.data or rest
  if data * shape.fsdp * shape.tensor == 1:
    return None
  return meshes.make_mesh(data, shape.fsdp, shape.tensor)


def prepare(
  experiment: Experiment,
  run_dir: Path,
  loaded: loading.Loaded,
  stage: Path | None = None,
  datasets: Datasets | None = None,
  say: progress.Say = progress.say,
) -> Run:
  """Reads the start, tokenises, packs, scores the reference, places the state.

  Args:
    experiment: the run.
    run_dir: its directory.
    loaded: its records (`loading.load`).
    stage: policy of the stage before, for a `Trained` start.
    datasets: see `loading.load`.
    say: where lines go.
  """
  datasets = datasets or {}
  mesh = check(experiment, datasets)
  objective = experiment.objective.build()
  begun = loading.begin(experiment, run_dir, loaded, stage)
  model = transformer.model(begun.config)
  adapter = experiment.adapter
  trained = lora.trainable_model(model, adapter)
  train, held_out, counts = loading.prepare(
    experiment, loaded, begun.tokenizer, run_dir, datasets
  )
  data = experiment.data
  train, held_out = (
    collate.to_layout(examples, objective.layout, data.seed) if examples else []
    for examples in (train, held_out)
  )
  counts = {**counts, "trained_on_sha256": audit.digest(train)}
  counts |= start_digest(experiment, begun.params["lm"])
  put = _as_it_is if mesh is None else functools.partial(place.place_batch, mesh)
  beside = aux_losses.prepare(experiment.parts, begun.tokenizer, run_dir, datasets, put)
  if beside.parts:
    counts["parts"] = beside.counts
  keep_counts(run_dir, counts)
  batches, reading = _plan(data, train, held_out)

  root = jax.random.key(experiment.seed)
  start = begun.params
  if adapter is not None:
    start = start | {"lm": trained.init(jax.random.fold_in(root, 3))}
  needed = aux_losses.joined(objective, beside.parts)
  head = heads.init_reward_head(jax.random.fold_in(root, 1), begun.config.width)
  params = state.with_heads(needed, start, head)
  chain = optim.transform(experiment.optimizer, trained.logical_axes())
  ema = experiment.optimizer.ema is not None
  made = (params, chain, objective.init(), jax.random.fold_in(root, 2), ema)
  if mesh is None:
    first, shardings = state.create(*made), None
  else:
    first, shardings = state.create_on(mesh, trained, *made)

  frozen = {}
  # The policy has taken no step: its parameters are the reference's.
  ref = {"lm": first.params["lm"]}
  if adapter is not None:
    frozen[state.BASE] = ref = {"lm": placed(mesh, model, begun.params["lm"])}
  if references.reads_live(objective) or aux_losses.read_reference(beside.parts):
    live = ref if adapter is not None else jax.tree.map(jax.numpy.copy, ref)
    frozen[references.ROLE] = live
  cached = functools.partial(_cached, experiment, run_dir, begun, ref, mesh, put, say)
  source = Source(batches, cached("train", train, reading["train"]), put)
  held = None
  if held_out:
    in_order = reading["held_out"]
    held = Source(in_order, cached("held_out", held_out, in_order), put)
  models = {"policy": model, references.ROLE: model}
  build = experiment.objective.build
  return Run(
    experiment=experiment,
    objective=objective,
    model=model,
    tokenizer=begun.tokenizer,
    train=source,
    beside=beside,
    held_out=held,
    frozen=frozen,
    state=first,
    step=step.make_step(
      build,
      models,
      experiment.optimizer,
      len(batches),
      mesh=mesh,
      shardings=shardings,
      adapter=adapter,
      parts=beside.parts,
    ),
    evaluate=step.make_evaluation(build, models, mesh=mesh, adapter=adapter),
    hparams=step.hparams(experiment.optimizer),
    counts=counts,
  )


def placed(mesh: jax.sharding.Mesh | None, model: Model, lm: Params) -> Params:
  """A decoder's frozen parameters on the mesh, or on the device."""
  if mesh is None:
    return jax.tree.map(jax.numpy.asarray, lm)
  return place.place_params(mesh, lm, model.logical_axes())


def merged(run: Run, params: Params) -> Params:
  """The policy's parameters without adapters: what is evaluated and exported."""
  adapter = run.experiment.adapter
  if adapter is None:
    return params
  base = run.frozen[state.BASE]["lm"]
  return params | {"lm": lora.merged(base, params["lm"], adapter)}


def _as_it_is(batch: Batch) -> Batch:
  return batch


def start_digest(
  experiment: Experiment | OnlineExperiment, lm: Params
) -> dict[str, str]:
  """What data.json says of weights that are read anew at every resume: the base of
  adapters, and a start that is a directory, which is the reference too.

  Args:
    experiment: the run.
    lm: the start's decoder.
  """
  if experiment.adapter is None and isinstance(experiment.start, Scratch):
    return {}  # made from the seed
  name = _START if experiment.adapter is None else "base_sha256"
  return {name: distributed.digest(lm).tobytes().hex()}


def keep_counts(run_dir: Path, counts: Mapping[str, Any]) -> None:
  """Writes data.json, or compares the data with it. A start or a judge whose digest it
  does not hold, of a run begun before digests were kept, passes.

  Raises:
    ValueError: the data changed since the run began; says how.
  """
  path = run_dir / COUNTS
  if not path.exists():
    path.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    return
  old = json.loads(path.read_text(encoding="utf-8"))
  new = {n: x for n, x in counts.items() if n not in (JUDGES, _START) or n in old}
  yaml_file.refuse_change("data", run_dir, old, json.loads(json.dumps(new)))


def _plan(data: Data, train, held_out) -> tuple[Batches, dict[str, Batches]]:
  """Training batches, and each data set read once in order; all of one shape, so that
  they share compiled programs."""
  names = ("rows_per_step", "microbatches", "row_length", "groups_per_row")
  sizes = pack.PackSizes(**{name: vars(data)[name] for name in names})
  run = {"seed": data.seed, "epochs": data.epochs, "steps": data.steps}
  plans = {"run": pack.plan(train, sizes, **run)}
  for name, examples in {"train": train, "held_out": held_out}.items():
    if examples:
      plans[name] = pack.eval_batches(examples, sizes)
  widest = zip(*(plan.shape for plan in plans.values()), strict=True)
  shape = pack.Shape(*map(max, widest))
  plans = {n: dataclasses.replace(plan, shape=shape) for n, plan in plans.items()}
  return plans.pop("run"), plans


def _cached(
  experiment, run_dir, begun, ref, mesh, put, say, name, examples, batches
) -> Cache | None:
  """The reference's statistics of a data set: from disk, or computed and kept."""
  stats = references.cacheable(experiment.objective.build())
  if not stats:
    return None
  data = experiment.data
  wanted = references.key(
    examples,
    begun.tokenizer,
    data.template,
    data.limits,
    ref,
    begun.config.compute_dtype,
    stats,
  )
  root = run_dir / "references"
  if data.reference_cache is not None:
    root = Path(data.reference_cache)
  kept = references.read(root / name, batches.store, wanted)
  if kept is None:
    say(f"scoring {len(examples)} {name} examples under the reference, once")
    run = references.scorer(transformer.model(begun.config), stats, mesh)
    kept = references.compute(batches, run, ref, put)
    references.write(root / name, kept, wanted)
  return kept


def budget(run: Run) -> dict[str, Any]:
  """Sizes of the run, for a person: steps, shape of a batch, tokens, parameters."""
  batches = run.train.batches
  return {
    "steps": len(batches),
    "rows_per_step": batches.rows_per_step,
    "microbatches": batches.microbatches,
    **{f"shape_{k}": v for k, v in batches.shape._asdict().items()},
    "tokens_computed": batches.tokens_computed,
    "tokens_unique": batches.tokens_unique,
    "parameters": sum(
      x.size
      for x in jax.tree.leaves([run.state.params, run.frozen.get(state.BASE, {})])
    ),
    "parameters_trained": sum(x.size for x in jax.tree.leaves(run.state.params)),
    "state_bytes": sum(
      x.nbytes for x in jax.tree.leaves(dataclasses.replace(run.state, key=None))
    ),
  }
