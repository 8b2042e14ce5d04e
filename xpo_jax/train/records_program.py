"""Makes the program of a run on records, with cached reference statistics."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from xpo_jax.config import factories
from xpo_jax.config.experiment import Experiment
from xpo_jax.data import audit, collate, pack
from xpo_jax.data.pack import Batch, Batches
from xpo_jax.data.sources import Loaded
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback.teacher import TEACHER
from xpo_jax.models import heads, lora, transformer
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import distributed, nf4, place
from xpo_jax.train import (
  aux_losses,
  export,
  loading,
  references,
  run_directory,
  state,
  step,
  validate,
)
from xpo_jax.train.loading import Datasets, HeldOut, Inputs, LoadedStart
from xpo_jax.train.progress import Say
from xpo_jax.train.references import Cache
from xpo_jax.train.state import Program, TrainState, final_params
from xpo_jax.types import Array, Objective, Params

SHOWN = ("loss", "reward_accuracy", "eval/loss", "eval/reward_accuracy", "grad_norm")
_EVALUATION_KEY = np.uint32(0xFFFFFFFF)  # folded into the run's, the same every time


class Source(NamedTuple):
  """Batches and the reference's statistics for them.

  Attributes:
    batches: by step.
    cache: of the reference's statistics, or None where none can be cached.
    place: puts a batch on the mesh.
  """

  batches: Batches
  cache: Cache | None
  place: Callable[[Batch], Batch]

  def batch(self, index: int) -> Batch:
    """The batch of a step, with cached statistics, on the mesh."""
    return self.place(references.fill(self.cache, self.batches[index]))

  def following(self, done: int) -> Iterator[Batch]:
    """The batches after `done` steps, prefetched by a thread."""
    dataset = grain.MapDataset.source(self.batches).slice(slice(done, None))
    dataset = dataset.map(functools.partial(references.fill, self.cache))
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return map(self.place, dataset.to_iter_dataset(ahead))


def check(experiment: Experiment, datasets: Datasets) -> Inputs:
  """Validates a run on records before anything is made.

  Returns:
    Its records; None where a function makes them when the run starts.

  Raises:
    ValueError: see `validate.check_common`; unreadable data.
    BadRecords: bad rows, where they stop the run.
  """
  data = experiment.data
  validate.check_common(experiment, data, datasets)
  if data.transform is not None:
    factories.factory(data.transform)
  if not loading.is_there(data):
    return Inputs(None)
  return Inputs(loading.load_checked(data, datasets))


def prepare(
  experiment: Experiment, run_dir: Path, inputs: Inputs, datasets: Datasets, say: Say
) -> Program:
  """Reads the start, tokenises, packs, scores the reference, places the state.

  Args:
    experiment: the run, accepted by `check`, its stages replaced by directories.
    run_dir: its directory.
    inputs: of `check`; what is None there is read here.
    datasets: see `loading.load`.
    say: prints a line.
  """
  data, mesh = experiment.data, validate.make_mesh(experiment.mesh)
  loaded = inputs.loaded
  if loaded is None:
    loaded = loading.load(data, data, datasets, run_dir / loading.RECORDS)
  objective, build = experiment.objective.build(), experiment.objective.build
  begin = loading.start(experiment, run_dir, loaded, mesh)
  model = transformer.model(begin.config)
  adapter = experiment.adapter
  trained = lora.trainable_model(model, adapter)
  train, held_out, counts = examples(experiment, begin, loaded, run_dir, datasets)
  other = references.load(experiment, begin)
  counts = {**counts, "trained_on_sha256": audit.digest(train)}
  teacher = loading.teacher(experiment, begin)
  named = references.load_named(experiment, begin)
  counts |= references.start_digests(experiment, begin, other, teacher, named)
  put = place.batch_placer(mesh)
  aux = aux_losses.prepare(
    experiment.aux_losses, begin.tokenizer, run_dir, datasets, put
  )
  if aux.losses:
    counts["aux_losses"] = aux.counts
  run_directory.write_counts(run_dir, counts)
  for note in audit.notes(counts):
    say(f"note: {note}")
  batches, in_order = _plan(data, train, held_out)

  root = jax.random.key(experiment.seed)
  head = heads.init_reward_head(jax.random.fold_in(root, 1), begin.config.width)
  needed = aux_losses.joined(objective, aux.losses)
  first, shardings = state.first(
    experiment,
    needed,
    begin.params,
    head,
    trained,
    mesh,
    adapter=begin.adapter and begin.adapter.params,
  )
  frozen = {}
  # The policy has taken no step: its parameters are the reference's.
  ref, ref_model = {"lm": first.params["lm"]}, model
  if adapter is not None:
    frozen[state.BASE] = ref = {"lm": state.frozen(mesh, model, begin.params["lm"])}
  if other is not None:
    ref, ref_model = references.place(mesh, model, frozen, other)
  if aux_losses.read_reference(objective, aux.losses):
    apart = adapter is not None or other is not None
    frozen[references.ROLE] = ref if apart else place.copied(ref)
  scoring = _ReferenceScoring(
    experiment, run_dir, begin, ref, ref_model, mesh, put, say
  )
  source = Source(batches, _cached(scoring, "train", train, in_order["train"]), put)
  held_out_source = None
  if held_out:
    plan = in_order["held_out"]
    held_out_source = Source(plan, _cached(scoring, "held_out", held_out, plan), put)
  models = {"policy": model, references.ROLE: ref_model}
  if teacher is not None:
    models[TEACHER] = teacher.model
    frozen[TEACHER] = {"lm": state.frozen(mesh, teacher.model, teacher.params["lm"])}
  for role, lm in named.items():
    models[role], frozen[role] = model, {"lm": state.frozen(mesh, model, lm)}
  take = step.make_step(
    build,
    models,
    experiment.optimizer,
    len(batches),
    mesh=mesh,
    shardings=shardings,
    adapter=adapter,
    aux_losses=aux.losses,
    moments=experiment.precision.moments,
  )
  hparams = step.hparams(experiment.optimizer)
  sizes = _sizes(batches, first, frozen)
  run_directory.write_shown(run_dir, batches[0], begin.tokenizer)
  fetch = export.policy_writer(
    adapter, model, frozen, begin.tokenizer, export.base_name(begin, run_dir)
  )
  if export.is_reward(experiment):
    fetch = export.reward_writer(experiment, begin, loaded, model, fetch)
  return Program(
    state=first,
    total=len(batches),
    advance=_advance(take, frozen, source, hparams, aux),
    evaluate=held_out_source
    and _evaluate(
      step.make_evaluation(build, models, mesh=mesh, adapter=adapter),
      frozen,
      held_out_source,
      hparams,
    ),
    line=functools.partial(_line, batches),
    batch=lambda index: batches[index],
    policy=lambda now: state.merged(final_params(now), frozen, adapter),
    export=fetch,
    export_base=export.base_writer(begin, model, frozen),
    model=model,
    tokenizer=begin.tokenizer,
    sizes=sizes,
    headline=(
      f"{sizes['steps']} steps of {sizes['rows_per_step']} rows x "
      f"{sizes['shape_L']} tokens"
    ),
    shown=SHOWN,
    log_every=10,
    checkpoint_every=None,
  )


def examples(
  experiment: Experiment,
  begin: LoadedStart,
  loaded: Loaded,
  run_dir: Path,
  datasets: Datasets,
) -> tuple[list[Example], list[Example], dict[str, Any]]:
  """Makes training and held-out examples in the objective's layout, and their audit.

  Raises:
    BadRecords: bad records, where they stop the run.
    ValueError: examples longer than the positions that the start has at most, or
      without a column that the objective reads.
  """
  train, held_out, counts = loading.prepare(
    experiment, loaded, begin.tokenizer, run_dir, datasets
  )
  every = functools.partial(itertools.chain, train, held_out)
  counts |= loading.beyond_positions(begin.config, every())
  counts |= loading.adapted(experiment, begin.config)
  objective, seed = experiment.objective.build(), experiment.data.seed
  unread = loading.unread_margins(objective, loaded)
  counts["unused_columns"] = counts["unused_columns"] | unread
  train, held_out = (
    collate.to_layout(rows, objective.layout, seed) if rows else []
    for rows in (train, held_out)
  )
  _check_columns(objective, itertools.chain(train, held_out), audit.notes(counts))
  return train, held_out, counts


# Columns that objectives read: the data's name, and what brings it.
_SOURCES = {
  "reward_BK": (
    "reward",
    "give `reward` to rated rows, `rewards` to lists or `probability` to pairs, or "
    "train on samples (Rollouts; --prompts FILE --reward MODULE:FUNCTION)",
  ),
  "desirable_BK": (
    "desirable",
    "give rows a `label`, or label them by their reward (--data.conversion threshold)",
  ),
  "reward_BKT": (
    "reward",
    "give rows of steps: `completions` with a label of each in `labels`",
  ),
  "margin_BK": (
    "margin",
    "give every pair a `margin`, or train bradley_terry, whose margin is a constant",
  ),
  "prompt_weight_BK": (
    "prompt_weight",
    "compute it from the prompts: --data.transform "
    "xpo_jax.data.transforms.prompt_matching:weighted",
  ),
}


def _check_columns(
  objective: Objective, examples: Iterable[Example], notes: list[str]
) -> None:
  """Refuses examples without a column of the data that an objective reads.

  Raises:
    ValueError: names the column, what brings it, and the notes on the data: perhaps
      rows that have it were dropped.
  """
  columns = sorted(objective.columns & _SOURCES.keys())
  for example in examples if columns else ():
    for column in columns:
      name, fix = _SOURCES[column]
      there = example.token_fields if column.endswith("T") else example.fields
      if name not in there:
        said = f"{objective.name} reads {column}, which {example.uid} does not have"
        raise ValueError("\n  ".join([f"{said}; {fix}", *notes]))


def held_out(
  experiment: Experiment,
  run_dir: Path,
  loaded: Loaded,
  tokenizer: Any,
  datasets: Datasets,
) -> HeldOut:
  """Loads the held-out examples of a run and their different prompts.

  Raises:
    ValueError: the run holds nothing out.
  """
  _, rows, _ = loading.prepare(experiment, loaded, tokenizer, run_dir, datasets)
  if not rows:
    raise ValueError(
      f"{run_dir} holds no data out; set Evaluation.share or Evaluation.path and train "
      "again"
    )
  first = {example.prompt.tobytes(): example for example in reversed(rows)}
  prompts = [example.prompt for example in reversed(first.values())]
  return HeldOut(prompts, (), rows)


def _advance(take, frozen, source, hparams, aux):
  """`(state, index) -> (state, metrics)`, with prefetched batches."""
  ahead: dict[int, Iterator[Batch]] = {}

  def advance(now: TrainState, index: int) -> tuple[TrainState, Mapping[str, Array]]:
    following = ahead.pop(index, None) or source.following(index)
    batch = next(following)
    ahead[index + 1] = following
    return take(now, frozen, batch, hparams, aux.batch(index))

  return advance


def _evaluate(run, frozen, held_out, hparams):
  """`state -> metrics`: loss and metrics on the held-out data, as `eval/...`.

  The state is unchanged. Random draws are the same at every evaluation.
  """

  def evaluate(now: TrainState) -> dict[str, Array]:
    key = jax.random.fold_in(now.key, _EVALUATION_KEY)
    total = None
    for index in range(len(held_out.batches)):
      batch = held_out.batch(index)
      means = run(final_params(now), frozen, now.method_state, batch, key, hparams)
      total = means if total is None else {n: total[n] + means[n] for n in means}
    return {f"eval/{name}": value for name, value in step.divide(total).items()}

  return evaluate


def _line(
  batches: Batches, index: int, numbers: Mapping[str, float], seconds: float
) -> dict[str, float]:
  """A line of metrics.jsonl; tokens per second without padding."""
  numbers = dict(numbers)
  line = {"step": index + 1, "epoch": batches.epoch_of(index)}
  line |= {"loss": numbers.pop("loss")} | numbers
  computed = batches.rows_per_step * batches.shape.L / seconds
  tokens = computed * (1 - numbers["padding"])
  return line | {"time/seconds": seconds, "time/tokens_per_second": tokens}


def _plan(data, train, held_out) -> tuple[Batches, dict[str, Batches]]:
  """Training batches, and one pass over each data set in order; all of one shape, so
  that they share compiled programs."""
  order = {"seed": data.seed, "epochs": data.epochs, "steps": data.steps}
  plans = {"run": pack.plan(train, data.sizes, **order)}
  for name, rows in {"train": train, "held_out": held_out}.items():
    if rows:
      plans[name] = pack.eval_batches(rows, data.sizes)
  widest = zip(*(plan.shape for plan in plans.values()), strict=True)
  shape = pack.Shape(*map(max, widest))
  plans = {n: dataclasses.replace(plan, shape=shape) for n, plan in plans.items()}
  return plans.pop("run"), plans


class _ReferenceScoring(NamedTuple):
  """Arguments of scoring a data set under the reference."""

  experiment: Experiment
  run_dir: Path
  begin: LoadedStart
  ref: Params
  model: Model
  mesh: jax.sharding.Mesh | None
  place: Callable[[Batch], Batch]
  say: Say


def _cached(
  scoring: _ReferenceScoring, name: str, rows: list[Example], batches: Batches
) -> Cache | None:
  """The reference's statistics of a data set: read, or computed and written."""
  stats = references.cacheable(scoring.experiment.objective.build())
  if not stats:
    return None
  data, begin = scoring.experiment.data, scoring.begin
  wanted = references.key(
    rows,
    begin.tokenizer,
    data.template,
    data.limits,
    scoring.ref,
    begin.config.compute_dtype,
    stats,
  )
  root = scoring.run_dir / run_directory.REFERENCES
  if data.reference_cache is not None:
    root = Path(data.reference_cache)
  read = functools.partial(references.read, root / name, batches.store, wanted)
  cache = distributed.together(read)
  if not all(distributed.gather(cache is not None)):  # all compute, or none
    scoring.say(f"scoring {len(rows)} {name} examples under the reference, once")
    score = references.scorer(scoring.model, stats, scoring.mesh)
    cache = references.compute(
      batches, score, scoring.ref, scoring.place, directory=scoring.run_dir
    )
    write = functools.partial(references.write, root / name, cache, wanted)
    distributed.on_first(write)
  return cache


def _sizes(batches: Batches, first: TrainState, frozen: Mapping) -> dict[str, Any]:
  """Sizes of the run: steps, shape of a batch, tokens, parameters."""
  trained = jax.tree.leaves(first.params)
  carried = jax.tree.leaves(dataclasses.replace(first, key=None))
  return {
    "steps": len(batches),
    "rows_per_step": batches.rows_per_step,
    "microbatches": batches.microbatches,
    **{f"shape_{k}": v for k, v in batches.shape._asdict().items()},
    "tokens_computed": batches.tokens_computed,
    "tokens_unique": batches.tokens_unique,
    "parameters": nf4.count([trained, frozen.get(state.BASE, {})]),
    "parameters_trained": sum(x.size for x in trained),
    "state_bytes": sum(x.nbytes for x in carried),
  }
