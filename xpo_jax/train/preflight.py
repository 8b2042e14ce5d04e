"""Everything that can be wrong with a recipe, found without training it.

Reads and tokenises the data, packs it, reads the start's weights, and compiles the
step to learn its memory; no step is run and no reference is scored.
"""

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.data import audit, collate, pack
from xpo_jax.models import lora, transformer
from xpo_jax.train import inputs, optim, references, setup, state, step
from xpo_jax.train.experiment import Experiment, Trained
from xpo_jax.train.inputs import Beginning, Memory


class Budget(NamedTuple):
  """What one stage of an experiment will compute.

  Attributes:
    name: the objective with its knobs.
    counts: the data's audit.
    sizes: steps, shapes, tokens, parameters.
    bytes: of the compiled step on one device: "arguments" (state and batch),
      "temporaries"; None on a mesh.
    shown: the first rows, token by token (`audit.show`).
  """

  name: str
  counts: Mapping[str, Any]
  sizes: Mapping[str, int]
  bytes: Mapping[str, int] | None
  shown: list[list[audit.Shown]]


def check(experiment: Experiment, memory: Memory | None = None) -> list[Budget]:
  """Validates an experiment and each stage before it.

  Args:
    experiment: the recipe's.
    memory: records by name; see `offline.train`.

  Returns:
    A budget for each stage, first stage first.

  Raises:
    ValueError: whatever training would refuse before its first step.
  """
  budgets, _ = _stages(experiment, memory or {})
  return budgets


def _stages(experiment: Experiment, memory: Memory) -> tuple[list[Budget], Beginning]:
  mesh = setup.check(experiment, memory)
  loaded = inputs.load(experiment.data, experiment.data, memory)
  with tempfile.TemporaryDirectory() as scratch:
    # A run's directory in all but its life: a tokenizer, a list of bad rows.
    run_dir = Path(scratch)
    if isinstance(experiment.start, Trained):
      before, begun = _stages(experiment.start.experiment, memory)
    else:
      before, begun = [], inputs.begin(experiment, run_dir, loaded, None)
    train, held_out, counts = inputs.prepare(
      experiment, loaded, begun.tokenizer, run_dir, memory
    )
  objective = experiment.objective.build()
  data = experiment.data
  train = collate.to_layout(train, objective.layout, data.seed)
  if held_out:
    collate.to_layout(held_out, objective.layout, data.seed)
  batches = pack.plan(
    train,
    rows_per_step=data.rows_per_step,
    microbatches=data.microbatches,
    row_length=data.row_length,
    groups_per_row=data.groups_per_row,
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
  memory_bytes = None if mesh is not None else _memory(experiment, begun, batches)
  knobs = ", ".join(f"{k}={v}" for k, v in experiment.objective.knobs.items())
  shown = audit.show(batches[0], begun.tokenizer)
  name = f"{experiment.objective.name}({knobs})"
  return [*before, Budget(name, counts, sizes, memory_bytes, shown)], begun


def _memory(experiment: Experiment, begun: Beginning, batches) -> dict[str, int]:
  """Bytes of the compiled step; parameters and state are never made."""
  objective = experiment.objective.build()
  model = transformer.model(begun.config)
  adapter = experiment.adapter
  trained = lora.trained(model, adapter)
  chain = optim.transform(experiment.optimizer, trained.logical_axes())
  ema = experiment.optimizer.ema is not None

  def create(lm):
    params = state.with_heads(
      objective, {"lm": lm}, begun.config.width, jax.random.key(0)
    )
    return state.create(params, chain, objective.init(), jax.random.key(0), ema)

  lm = jax.eval_shape(lambda: begun.params["lm"])
  frozen = {references.ROLE: {"lm": lm}} if references.reads_live(objective) else {}
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
  )
  knobs = step.knobs(experiment.optimizer)
  make = functools.partial(jax.eval_shape, create)
  compiled = update.lower(make(lm), frozen, batch, knobs).compile()
  found = compiled.memory_analysis()
  return {
    "arguments": found.argument_size_in_bytes,
    "temporaries": found.temp_size_in_bytes,
  }
