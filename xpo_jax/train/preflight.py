"""Everything that can be wrong with a recipe, found without training it.

Reads and tokenises the data, packs it, reads the start's weights, and compiles the
step to learn its memory; no step is run and no reference is scored. Of an online run
the judge is made, nothing is sampled, and the step is that of the largest batch there
can be: the longest prompt, completions at the limit.
"""

import functools
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.config import optim, split_overlap
from xpo_jax.config.experiment import Experiment, ObjectiveConfig, Trained
from xpo_jax.config.on_policy import OnlineExperiment
from xpo_jax.data import audit, collate, pack
from xpo_jax.data.pack import Batches
from xpo_jax.models import heads, lora, transformer
from xpo_jax.train import (
  aux_losses,
  loading,
  minibatches,
  offline,
  online_setup,
  references,
  run_directory,
  setup,
  state,
  step,
  validate,
)
from xpo_jax.train.loading import Beginning, Datasets


class Budget(NamedTuple):
  """What one stage of an experiment will compute.

  Attributes:
    name: the objective with its hyperparameters.
    counts: the data's audit.
    sizes: steps, shapes, tokens, parameters.
    bytes: of the compiled step on one device: "arguments" (state and batch),
      "temporaries", and of an online run what it keeps "between updates" beside them,
      a reference or older samplers; sampling itself is not in it. None on a mesh.
    shown: the first rows, token by token (`audit.inspect_tokens`); of an online run the
      first prompt.
  """

  name: str
  counts: Mapping[str, Any]
  sizes: Mapping[str, int]
  bytes: Mapping[str, int] | None
  shown: list[list[audit.TokenInfo]]


def check(
  experiment: Experiment | OnlineExperiment, datasets: Datasets | None = None
) -> list[Budget]:
  """Validates an experiment and each stage before it.

  Args:
    experiment: the recipe's, offline or online.
    datasets: records by name; see `offline.train`.

  Returns:
    A budget for each stage, first stage first.

  Raises:
    ValueError: whatever training would refuse before its first step.
  """
  if isinstance(experiment, OnlineExperiment):
    return _online(experiment, datasets or {})
  budgets, _ = _stages(experiment, datasets or {})
  return budgets


def lines(budget: Budget) -> list[str]:
  """A budget for a screen."""
  counts, sizes = budget.counts, budget.sizes
  rows = f"rows {counts['rows']:,}"
  if "prompts" in counts:
    rows += f", dropped {counts['dropped']:,}; prompts {counts['prompts']:,}"
    rows += f", held out {counts['held_out_prompts']:,}"
    rows += f", the longest {counts['longest_prompt']:,} tokens"
  else:
    rows += f", kept {counts['kept']:,}, dropped {sum(counts['dropped'].values()):,}"
    rows += f", truncated {counts['truncated_prompts']:,} prompts and "
    rows += f"{counts['truncated_completions']:,} completions"
  found = [rows, *(f"{name} {value:,}" for name, value in sizes.items())]
  if "tokens computed" in sizes:
    ratio = sizes["tokens computed"] / max(sizes["unique tokens"], 1)
    found.append(f"tokens computed per unique token {ratio:.3f}")
  for name, value in (budget.bytes or {}).items():
    found.append(f"memory, {name}: {value / 2**20:,.1f} MiB")
  marked = (f"[{t.text}]" if t.loss else t.text for t in budget.shown[0][:60])
  text = textwrap.indent("".join(marked), "    ")
  return [
    budget.name,
    *(f"  {line}" for line in found),
    "  first row, loss in [ ]:",
    text,
  ]


def _online(experiment: OnlineExperiment, datasets: Datasets) -> list[Budget]:
  loaded = validate.load(experiment, datasets)
  with tempfile.TemporaryDirectory() as scratch:
    run_dir, before, stage = Path(scratch), [], None
    if isinstance(experiment.start, Trained):
      before, begun = _stages(experiment.start.experiment, datasets)
      # What the stage would leave, untrained: shapes and tokenizer are the same.
      stage = run_dir / offline.POLICY
      run_directory.export(stage, begun.config, begun.params, begun.tokenizer)
    run = online_setup.prepare(experiment, run_dir, loaded, stage, datasets)
  sampling, each = experiment.sampling, experiment.prompts_per_iteration
  completions = experiment.iterations * each * sampling.completions
  sizes = {
    "iterations": experiment.iterations,
    "prompts an iteration": each,
    "completions a prompt": sampling.completions,
    "updates an iteration": experiment.minibatches * experiment.ppo_epochs,
    "completions in all": completions,
    "tokens sampled, at most": completions * sampling.max_completion_tokens,
    "parameters": sum(x.size for x in jax.tree.leaves(run.ref)),
    "parameters trained": sum(x.size for x in jax.tree.leaves(run.state.train.params)),
  }
  prompt = [
    audit.TokenInfo(run.tokenizer.decode([int(token)]), 1, 0, at, False)
    for at, token in enumerate(run.prompts.ids[0])
  ]
  found = _online_memory(run)
  return [
    *before,
    Budget(_name(experiment.objective), run.counts, sizes, found, [prompt]),
  ]


def _online_memory(run: online_setup.Run) -> dict[str, int] | None:
  batch = minibatches.largest(run)
  if setup.make_mesh(run.experiment.mesh) is not None or batch is None:
    return None
  read, beta = online_setup.frozen(run, run.ref), {}
  if run.controller is not None:
    beta["beta"] = float(run.state.beta)
  hparams = step.hparams(run.experiment.optimizer, **beta)
  arguments = (run.state.train, read, batch, hparams, run.beside.batch(0))
  # The start, of which adapters read their base; the reference of now; less what of
  # both the step reads.
  copies = (not run.frozen) + (run.state.ref is not None) - (references.ROLE in read)
  kept = [run.state.sampler, *[run.ref] * copies]
  between = sum(x.nbytes for x in jax.tree.leaves(kept))
  return _compiled(run.step, *arguments) | {"between updates": between}


def _name(use: ObjectiveConfig) -> str:
  return f"{use.name}({', '.join(f'{k}={v}' for k, v in use.hparams.items())})"


def _stages(
  experiment: Experiment, datasets: Datasets
) -> tuple[list[Budget], Beginning]:
  mesh = setup.check(experiment, datasets)
  split_overlap.check(experiment)
  loaded = loading.load(experiment.data, experiment.data, datasets)
  with tempfile.TemporaryDirectory() as scratch:
    # A run's directory in all but its life: a tokenizer, a list of bad rows.
    run_dir = Path(scratch)
    if isinstance(experiment.start, Trained):
      before, begun = _stages(experiment.start.experiment, datasets)
    else:
      before, begun = [], loading.begin(experiment, run_dir, loaded, None)
    train, held_out, counts = loading.prepare(
      experiment, loaded, begun.tokenizer, run_dir, datasets
    )
    beside = aux_losses.prepare(
      experiment.parts, begun.tokenizer, run_dir, datasets, lambda batch: batch
    )
  objective = experiment.objective.build()
  data = experiment.data
  train = collate.to_layout(train, objective.layout, data.seed)
  if held_out:
    collate.to_layout(held_out, objective.layout, data.seed)
  batches = pack.plan(
    train,
    pack.PackSizes(
      data.rows_per_step, data.microbatches, data.row_length, data.groups_per_row
    ),
    seed=data.seed,
    epochs=data.epochs,
    steps=data.steps,
  )
  parameters = sum(x.size for x in jax.tree.leaves(begun.params))
  sizes = {
    "steps": len(batches),
    "rows a step": batches.rows_per_step,
    "microbatches": batches.microbatches,
    "row length": batches.shape.L,
    "tokens computed": batches.tokens_computed,
    "unique tokens": batches.tokens_unique,
    "parameters": parameters,
  }
  memory_bytes = None
  if mesh is None:
    memory_bytes = _memory(experiment, begun, batches, beside)
  shown = audit.inspect_tokens(batches[0], begun.tokenizer)
  name = _name(experiment.objective)
  return [*before, Budget(name, counts, sizes, memory_bytes, shown)], begun


def _memory(
  experiment: Experiment, begun: Beginning, batches: Batches, beside: aux_losses.Beside
) -> dict[str, int]:
  """Bytes of the compiled step; parameters and state are never made."""
  objective = experiment.objective.build()
  model = transformer.model(begun.config)
  adapter = experiment.adapter
  trained = lora.trainable_model(model, adapter)
  chain = optim.transform(experiment.optimizer, trained.logical_axes())
  ema = experiment.optimizer.ema is not None
  needed = aux_losses.joined(objective, beside.parts)

  def create(lm):
    head = heads.init_value_head(begun.config.width)
    params = state.with_heads(needed, {"lm": lm}, head)
    return state.create(params, chain, objective.init(), jax.random.key(0), ema)

  lm = jax.eval_shape(lambda: begun.params["lm"])
  live = references.reads_live(objective) or aux_losses.read_reference(beside.parts)
  frozen = {references.ROLE: {"lm": lm}} if live else {}
  if adapter is not None:
    frozen[state.BASE] = {"lm": lm}
    lm = jax.eval_shape(trained.init, jax.random.key(0))
  batch = batches[0]
  cached = {stat.field: batch.mask_MBKT for stat in references.cacheable(objective)}
  batch = batch.replace(ref={k: np.zeros_like(v) for k, v in cached.items()})
  update = step.make_step(
    experiment.objective.build,
    {"policy": model, references.ROLE: model},
    experiment.optimizer,
    len(batches),
    adapter=adapter,
    parts=beside.parts,
  )
  hparams = step.hparams(experiment.optimizer)
  make = functools.partial(jax.eval_shape, create)
  return _compiled(update, make(lm), frozen, batch, hparams, beside.batch(0))


def _compiled(update: step.Step, *arguments) -> dict[str, int]:
  found = update.lower(*arguments).compile().memory_analysis()
  return {
    "arguments": found.argument_size_in_bytes,
    "temporaries": found.temp_size_in_bytes,
  }
