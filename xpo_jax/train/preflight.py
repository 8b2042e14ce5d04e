"""Validates a recipe without training it, and computes its budget.

Reads, tokenises and packs the data, reads the start's weights, and compiles the step
for its memory; no step is run and the reference is not scored. For a run on rollouts
the judge is made, nothing is sampled, and the step is compiled for the largest batch:
the longest prompt, completions at the limit. Untrained weights of the same shapes take
the place of those of a stage.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.config.experiment import Experiment
from xpo_jax.data import audit, pack, token_rows
from xpo_jax.data.pack import Batches
from xpo_jax.data.records import Prompt
from xpo_jax.data.sources import Loaded
from xpo_jax.data.token_rows import TokenInfo, TokenRows
from xpo_jax.feedback import reward_model
from xpo_jax.feedback.teacher import TEACHER
from xpo_jax.models import heads, hf_checkpoint, lora, transformer
from xpo_jax.models.config import Remat
from xpo_jax.ops.kl_control import Affine
from xpo_jax.sharding import nf4
from xpo_jax.train import (
  aux_losses,
  export,
  loading,
  loop,
  minibatches,
  progress,
  records_program,
  references,
  rollouts_program,
  run_directory,
  stages,
  state,
  step,
  validate,
)
from xpo_jax.train.aux_losses import AuxLosses
from xpo_jax.train.loading import Datasets, Inputs, LoadedStart

SHOWN = 3  # prompts whose text is shown


class Budget(NamedTuple):
  """Data, sizes and memory of one stage of an experiment.

  Attributes:
    name: the objective with its hyperparameters.
    counts: the data's audit.
    sizes: steps, shapes, tokens, parameters.
    bytes: of the compiled step on one device: "arguments" (state and batch),
      "temporaries", and for a run on rollouts "between updates": reference, teacher and
      older samplers; without sampling. None on a mesh.
    remat: what of a block the step computes again, see `Config.remat`.
    shown: the first rows, token by token (`audit.inspect_tokens`); of a run on rollouts
      the first prompts.
  """

  name: str
  counts: Mapping[str, Any]
  sizes: Mapping[str, int]
  bytes: Mapping[str, int] | None
  remat: Remat
  shown: TokenRows


def check(*experiments: Experiment, datasets: Datasets | None = None) -> list[Budget]:
  """Validates experiments and each of their stages, equal ones once.

  Args:
    experiments: the recipe's.
    datasets: records by name; see `loop.train`.

  Returns:
    A budget for each stage and each run, stages before the runs that need them.

  Raises:
    ValueError: as `loop.train` before its first step.
  """
  datasets, budgets = datasets or {}, {}
  with tempfile.TemporaryDirectory() as store:
    for experiment in experiments:
      inputs = loop.check(experiment, datasets)
      _budget(experiment, Path(store), inputs, datasets, budgets)
  return list(budgets.values())


def lines(budget: Budget) -> list[str]:
  """Formats a budget for display."""
  counts, sizes = budget.counts, budget.sizes
  if "made by" in counts:
    source = f"records made by {counts['made by']} when the run starts: not checked"
    sizes_listed = [f"{name} {value:,}" for name, value in sizes.items()]
    return [budget.name, *(f"  {line}" for line in [source, *sizes_listed])]
  facts = [*_rows(counts), *audit.length_lines(counts), *audit.notes(counts)]
  facts += [f"{name} {value:,}" for name, value in sizes.items()]
  if "tokens computed" in sizes:
    ratio = sizes["tokens computed"] / max(sizes["unique tokens"], 1)
    facts.append(f"tokens computed per unique token {ratio:.3f}")
  facts.append(f"remat {budget.remat}")
  for name, value in (budget.bytes or {}).items():
    facts.append(f"memory, {name}: {value / 2**20:,.1f} MiB")
  shown = token_rows.lines(budget.shown, SHOWN)
  return [
    budget.name,
    *(f"  {line}" for line in facts),
    "  first rows, loss in [ ]:",
    *(f"    {line}" for line in shown),
  ]


def _rows(counts: Mapping[str, Any]) -> list[str]:
  """Says what became of the rows: kept, dropped and why, repeated, held out."""
  if "prompts" in counts:  # of a run on rollouts
    problems, held_out = counts["problems"], counts["held_out_prompts"]
    kept = f"prompts {counts['prompts']:,}"
    changed = f"truncated prompts {counts['truncated_prompts']:,}"
    repeated = f"repeated prompts {counts['repeated_prompts']:,}, used once"
  else:
    problems = counts["dropped"]
    splits = counts["splits"] | counts.get("held_out", {}).get("splits", {})
    held_out = splits.get("held_out", {}).get("prompts", 0)
    kept = f"kept {counts['kept']:,}"
    changed = f"truncated prompts {counts['truncated_prompts']:,}, "
    changed += f"truncated completions {counts['truncated_completions']:,}"
    repeated = f"repeated rows {counts['repeated_rows']:,}, "
    repeated += f"repeated prompts {counts['repeated_prompts']:,}"
  why = ", ".join(f"{problem} {count:,}" for problem, count in problems.items())
  dropped = f"dropped {sum(problems.values()):,}" + (f" ({why})" if why else "")
  lines = [f"rows {counts['rows']:,}, {kept}, {dropped}", f"{changed}, {repeated}"]
  if held_out:
    also = counts["overlap"]
    lines.append(f"held-out prompts {held_out:,}, also trained on {also:,}")
  return lines


def _budget(
  experiment: Experiment,
  store: Path,
  inputs: Inputs,
  datasets: Datasets,
  budgets: dict[Path, Budget],
) -> Path:
  """Adds the budgets of an experiment, its stages first, and returns a directory with
  untrained weights in place of its policy."""
  run_dir = stages.directory(experiment, store, datasets)
  policy = run_dir / "policy"
  if run_dir in budgets:
    return policy
  for stage in stages.of(experiment):
    _budget(stage.experiment, store, Inputs(), datasets, budgets)
  resolved = stages.replaced(
    experiment,
    lambda stage: stages.directory(stage.experiment, store, datasets) / "policy",
  )
  run_dir.mkdir()
  make = _MAKERS[loop.maker(resolved)]
  budgets[run_dir] = make(resolved, run_dir, policy, inputs, datasets)
  return policy


def _export(experiment: Experiment, begin: LoadedStart, policy: Path) -> None:
  """Writes untrained weights of the run's shapes, and its tokenizer."""
  params = begin.params
  if export.is_reward(experiment):
    head = heads.init_value_head(begin.config.width)
    params = params | {"value": params.get("value", head)}
  config, tokenizer, adapter = begin.config, begin.tokenizer, experiment.adapter
  if adapter is None:
    hf_checkpoint.save(policy, config, params, tokenizer=tokenizer)
  else:
    base = policy.with_name(run_directory.BASE)
    stored = nf4.dense({"lm": params["lm"]})
    hf_checkpoint.save(base, config, stored, tokenizer=tokenizer)
    hf_checkpoint.save_adapter(
      policy,
      config,
      adapter,
      params=params | {"lm": lora.init(config, adapter, jax.random.key(0))},
      base=params["lm"],
      base_name=str(base),
      tokenizer=tokenizer,
    )
  if export.is_reward(experiment):
    data = experiment.data
    unit = Affine(1.0, 0.0)
    reward_model.write_description(policy, data.template, data.limits, affine=unit)


def _records(
  experiment: Experiment,
  run_dir: Path,
  policy: Path,
  inputs: Inputs,
  datasets: Datasets,
) -> Budget:
  """The budget of a run on records."""
  data, name = experiment.data, str(experiment.objective)
  if not loading.is_there(data):
    # Of a tokenizer that is trained on the records, only the size is needed.
    placeholder = Loaded(name, (Prompt("", name),), (), "")
    begin = loading.start(experiment, run_dir, placeholder)
    _export(experiment, begin, policy)
    parameters = nf4.count(begin.params)
    counts = {"made by": data.path.name}
    return Budget(
      name, counts, {"parameters": parameters}, None, begin.config.remat, []
    )
  loaded = inputs.loaded or loading.load(data, data, datasets)
  begin = loading.start(experiment, run_dir, loaded)
  train, _, counts = records_program.examples(
    experiment, begin, loaded, run_dir, datasets
  )
  aux = aux_losses.prepare(
    experiment.aux_losses, begin.tokenizer, run_dir, datasets, lambda batch: batch
  )
  _export(experiment, begin, policy)
  batches = pack.plan(
    train, data.sizes, seed=data.seed, epochs=data.epochs, steps=data.steps
  )
  sizes = {
    "steps": len(batches),
    "rows a step": batches.rows_per_step,
    "microbatches": batches.microbatches,
    "row length": batches.shape.L,
    "tokens computed": batches.tokens_computed,
    "unique tokens": batches.tokens_unique,
    "parameters": nf4.count(begin.params),
  }
  memory = None
  if validate.make_mesh(experiment.mesh) is None:
    try:
      memory = _memory(experiment, begin, batches, aux)
    except ValueError as error:  # perhaps because of the rows that were dropped
      raise ValueError("\n  ".join([str(error), *audit.notes(counts)])) from error
  return Budget(
    name,
    counts,
    sizes,
    memory,
    begin.config.remat,
    audit.inspect_tokens(batches[0], begin.tokenizer),
  )


def _rollouts(
  experiment: Experiment,
  run_dir: Path,
  policy: Path,
  inputs: Inputs,
  datasets: Datasets,
) -> Budget:
  """The budget of a run on rollouts."""
  parts, first = rollouts_program.assemble(
    experiment, run_dir, inputs, datasets, progress.silent
  )
  lm = parts.frozen.get(state.BASE, parts.ref)
  begin = loading.LoadedStart(parts.model.config, lm, parts.tokenizer)
  _export(experiment, begin, policy)
  data, sampling = experiment.data, experiment.data.sampling
  completions = data.iterations * data.prompts_per_iteration * sampling.completions
  completions *= data.dynamic_sampling or 1  # at most
  sizes = {
    "iterations": data.iterations,
    "prompts an iteration": data.prompts_per_iteration,
    "completions a prompt": sampling.completions,
    "updates an iteration": data.minibatches * data.ppo_epochs,
    "completions in all": completions,
    "tokens sampled, at most": completions * sampling.max_completion_tokens,
    "parameters": nf4.count(parts.ref),
    "parameters trained": nf4.count(first.train.params),
  }
  prompts = [
    [
      TokenInfo(parts.tokenizer.decode([int(token)]), 1, 0, at, False)
      for at, token in enumerate(ids)
    ]
    for ids in parts.prompts.ids[:SHOWN]
  ]
  memory = _rollouts_memory(parts, first)
  return Budget(
    str(experiment.objective),
    parts.counts,
    sizes,
    memory,
    parts.model.config.remat,
    TokenRows(prompts),
  )


_MAKERS = {records_program: _records, rollouts_program: _rollouts}


def _rollouts_memory(parts, first) -> dict[str, int] | None:
  experiment = parts.experiment
  batch = minibatches.largest(
    experiment.data,
    max(parts.prompts.ids, key=len),
    rollouts_program.recorded_stats(parts.objective, experiment.data.sampling),
    parts.pairs,
    parts.sizes,
  )
  if validate.make_mesh(experiment.mesh) is not None or batch is None:
    return None
  read, beta = rollouts_program.frozen_roles(parts, parts.ref), {}
  if parts.controller is not None:
    beta["beta"] = float(first.beta)
  hparams = step.hparams(experiment.optimizer, **beta)
  arguments = (first.train, read, batch, hparams, parts.aux.batch(0))
  # The start (the base of adapters) and the current reference, less those that are
  # arguments of the step.
  copies = (not parts.frozen) + (first.ref is not None) - (references.ROLE in read)
  resident = [first.sampler, *[parts.ref] * copies]
  if parts.teacher is not None and TEACHER not in read:
    resident.append(parts.teacher.params)
  between = sum(nf4.nbytes(x.shape, x.dtype) for x in jax.tree.leaves(resident))
  return _compiled(parts.take, *arguments) | {"between updates": between}


def _memory(
  experiment: Experiment, begin: LoadedStart, batches: Batches, aux: AuxLosses
) -> dict[str, int]:
  """Bytes of the compiled step; parameters and state are never made."""
  objective = experiment.objective.build()
  model = transformer.model(begin.config)
  adapter = experiment.adapter
  trained = lora.trainable_model(model, adapter)
  lm = jax.eval_shape(lambda: begin.params["lm"])
  live = aux_losses.read_reference(objective, aux.losses)
  frozen = {references.ROLE: {"lm": lm}} if live else {}
  models = {"policy": model, references.ROLE: model}
  teacher = loading.teacher(experiment, begin)
  if teacher is not None:
    models[TEACHER] = teacher.model
    frozen[TEACHER] = jax.eval_shape(lambda: teacher.params)
  for one in experiment.references:  # of the policy's shapes
    models[one.role], frozen[one.role] = model, {"lm": lm}
  if adapter is not None:
    frozen[state.BASE] = {"lm": lm}
    lm = jax.eval_shape(trained.init, jax.random.key(0))
  batch = batches[0]
  cached = {stat.field: batch.mask_MBKT for stat in references.cacheable(objective)}
  batch = batch.replace(ref={k: np.zeros_like(v) for k, v in cached.items()})
  update = step.make_step(
    experiment.objective.build,
    models,
    experiment.optimizer,
    len(batches),
    adapter=adapter,
    aux_losses=aux.losses,
    moments=experiment.precision.moments,
  )
  hparams = step.hparams(experiment.optimizer)
  needed = aux_losses.joined(objective, aux.losses)
  first = state.shapes(experiment, needed, trained, lm, begin.config.width)
  return _compiled(update, first, frozen, batch, hparams, aux.batch(0))


def _compiled(update: step.Step, *arguments) -> dict[str, int]:
  memory = update.lower(*arguments).compile().memory_analysis()
  return {
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
  }
