"""The offline trainer: from an experiment and a directory to a trained policy.

A run directory holds `config.yaml` (the experiment, versions, flags, code), `data.json`
(counts and hashes), `shown.json` (the first rows, token by token), `metrics.jsonl`,
`tensorboard/`, `checkpoints/`, `references/`, `policy/` (a Hugging Face directory),
`adapter/` (PEFT's format; `policy/` then has it merged) and, when it is finished,
`summary.json`.
"""

import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.config import split_overlap, yaml_file
from xpo_jax.config.experiment import Experiment, Pretrained, Trained
from xpo_jax.data import audit, records
from xpo_jax.models import peft
from xpo_jax.models.transformer import Model
from xpo_jax.train import (
  checkpoint,
  loading,
  metrics,
  progress,
  run_directory,
  setup,
  step,
)
from xpo_jax.train.loading import Datasets
from xpo_jax.train.setup import Run
from xpo_jax.train.state import BASE, TrainState, final_params
from xpo_jax.types import Array, Params

SUMMARY, SHOWN = "summary.json", "shown.json"
SHOWN_ROWS = 4
CHECKPOINTS, POLICY, START, NONFINITE = "checkpoints", "policy", "start", "nonfinite"
ADAPTER = "adapter"


class Result(NamedTuple):
  """What a run left.

  Attributes:
    run_dir: its directory.
    model: the architecture.
    params: the final policy, `{"lm": ...}`, adapters merged.
    tokenizer: its tokenizer.
    steps: steps done.
    finished: False where SIGTERM ended it early; `resume` goes on.
  """

  run_dir: Path
  model: Model
  params: Params
  tokenizer: Any
  steps: int
  finished: bool


class NonFiniteLoss(ValueError):
  """A loss or a gradient that is not a finite number; the batch was saved."""


def train(
  experiment: Experiment,
  run_dir: str | Path,
  *,
  datasets: Datasets | None = None,
  say: progress.Say = progress.say,
) -> Result:
  """Runs an experiment from its start.

  Args:
    experiment: what to do.
    run_dir: a directory that does not exist yet.
    datasets: records by name, where `Data.path` is such a name and not a file.
    say: where plain lines go.

  Raises:
    ValueError: the run directory exists, or anything about the experiment or its data
      is wrong; all of it before the first compile, and no directory is left.
    NonFiniteLoss: the run diverged.
  """
  run_dir, datasets = Path(run_dir), datasets or {}
  run_directory.refuse_taken(run_dir)
  say(f"{run_dir}: {_title(experiment)}")
  setup.check(experiment, datasets)
  split_overlap.check(experiment)
  loaded = loading.load(experiment.data, experiment.data, datasets)
  if loaded.bad and experiment.data.bad_rows == "stop":
    raise records.BadRecords(loaded.bad)
  with run_directory.begun(run_dir, experiment, (CHECKPOINTS, START)):
    return _go(experiment, run_dir, loaded, datasets, say)


def resume(
  run_dir: str | Path,
  experiment: Experiment | None = None,
  *,
  datasets: Datasets | None = None,
  say: progress.Say = progress.say,
) -> Result:
  """Continues a run bit for bit, from its newest valid checkpoint.

  Args:
    run_dir: the run.
    experiment: what the caller thinks it is, or None to take the run's word.
    datasets: see `train`.
    say: where plain lines go.

  Raises:
    ValueError: no such run, or its data or configuration changed; says how.
  """
  run_dir, datasets = Path(run_dir), datasets or {}
  kept = run_directory.kept(run_dir, experiment)
  say(f"{run_dir}: resuming {_title(kept)}")
  loaded = loading.load(kept.data, kept.data, datasets)
  return _go(kept, run_dir, loaded, datasets, say)


def _go(experiment, run_dir, loaded, datasets, say) -> Result:
  stage = None
  if isinstance(experiment.start, Trained):
    stage = run_dir / START
    before = stage_before(experiment.start.experiment, stage, datasets, say)
    if before is not None and not before.finished:
      return before._replace(run_dir=run_dir)
    stage = stage / POLICY
  run = setup.prepare(experiment, run_dir, loaded, stage, datasets, say)
  rows = audit.inspect_tokens(run.train.batches[0], run.tokenizer)[:SHOWN_ROWS]
  run_directory.write_json(
    run_dir / SHOWN, [[token._asdict() for token in row] for row in rows]
  )
  sizes = setup.budget(run)
  say(
    f"{sizes['parameters']:,} parameters, {sizes['steps']} steps of "
    f"{sizes['rows_per_step']} rows x {sizes['shape_L']} tokens; compiling the first"
  )
  meta = {"experiment": yaml_file.to_dict(experiment), **yaml_file.surroundings()}
  manager = checkpoint.open_manager(run_dir / CHECKPOINTS, experiment.loop.keep)
  state = run_directory.restored(manager, run_dir, run.state, meta, say)
  run = run._replace(state=None)  # donated with the first step
  with checkpoint.preemption() as asked:
    state = _loop(run, run_dir, state, manager, meta, asked, say)
  manager.close()
  finished = int(state.step) == len(run.train.batches)
  trained = final_params(state)
  params = setup.merged(run, trained)
  if finished:
    if experiment.adapter is not None:
      export_adapter(run_dir, run, trained)
    run_directory.export(run_dir / POLICY, run.model.config, params, run.tokenizer)
    run_directory.write_json(
      run_dir / SUMMARY, sizes | {"final": metrics.read(run_dir)[-1]}
    )
    say(f"done: {run_dir / POLICY} is a Hugging Face directory")
  else:
    say(f"stopped by SIGTERM at step {int(state.step)}: xpo resume {run_dir}")
  return Result(run_dir, run.model, params, run.tokenizer, int(state.step), finished)


def stage_before(
  experiment: Experiment, run_dir: Path, datasets: Datasets, say: progress.Say
) -> Result | None:
  """Runs the stage before, or the rest of it; None where it is done."""
  if (run_dir / SUMMARY).exists():
    return None
  if (run_dir / yaml_file.FILE).exists():
    return resume(run_dir, experiment, datasets=datasets, say=say)
  return train(experiment, run_dir, datasets=datasets, say=say)


def _loop(run, run_dir, state, manager, meta, asked, say) -> TrainState:
  loop, steps = run.experiment.loop, len(run.train.batches)
  done = int(state.step)
  if done == steps:
    return state
  writer = metrics.open_writer(
    run_dir, done, run_directory.wandb(loop.wandb, run_dir, meta)
  )
  pending, clock = [], time.perf_counter()
  batches = run.train.following(done)
  with progress.following(steps, done, say) as report:
    try:
      for index in range(done, steps):
        beside = run.beside.batch(index)
        batch = next(batches)
        state, measured = run.step(state, run.frozen, batch, run.hparams, beside)
        pending.append((index, measured))
        now, last = index + 1, index + 1 == steps
        evaluating = run.held_out is not None and (
          last or run_directory.due(loop.eval_every, now)
        )
        stopping = asked.is_set()  # once: a signal from here on is seen a step later
        saving = last or stopping or run_directory.due(loop.checkpoint_every, now)
        if evaluating:
          measured |= evaluate(run, state)
        # The first step apart: its time is the compiler's.
        if (
          index == done
          or run_directory.due(loop.log_every, now)
          or evaluating
          or saving
        ):
          clock = _flush(run, run_dir, writer, pending, clock, report)
        if saving:
          checkpoint.save(manager, state, meta)
        if stopping:
          break
    finally:
      metrics.close(writer)
  return state


def evaluate(run: Run, state: TrainState) -> dict[str, Array]:
  """The objective's loss and metrics on the held-out data, as `eval/...`.

  Reads the state, moves nothing of it. Draws are the same at every evaluation.
  """
  key = jax.random.fold_in(state.key, jnp.uint32(0xFFFFFFFF))
  total = None
  for index in range(len(run.held_out.batches)):
    means = run.evaluate(
      final_params(state),
      run.frozen,
      state.method_state,
      run.held_out.batch(index),
      key,
      run.hparams,
    )
    total = means if total is None else {n: total[n] + means[n] for n in means}
  return {f"eval/{name}": value for name, value in step.divide(total).items()}


def _flush(run, run_dir, writer, pending, clock, report) -> float:
  """Fetches the metrics of the pending steps at once, checks and writes them."""
  fetched = jax.device_get([measured for _, measured in pending])
  now = time.perf_counter()
  batches = run.train.batches
  seconds = (now - clock) / len(pending)
  rate = batches.rows_per_step * batches.shape.L / seconds
  for (index, _), values in zip(pending, fetched, strict=True):
    numbers = {name: float(value) for name, value in values.items()}
    line = {"step": index + 1, "epoch": batches.epoch_of(index)}
    line |= {"loss": numbers.pop("loss")} | numbers
    tokens = rate * (1 - numbers["padding"])
    line |= {"time/seconds": seconds, "time/tokens_per_second": tokens}
    metrics.write(writer, line)
    if not np.isfinite([line["loss"], line["grad_norm"]]).all():
      metrics.flush(writer)
      raise _diverged(run, run_dir, index, line)
  metrics.flush(writer)
  report(line)
  pending.clear()
  return now


def _diverged(run, run_dir, index, line) -> NonFiniteLoss:
  """Saves the batch on which the numbers ceased to be finite."""
  kept = run_directory.keep_batch(run_dir / NONFINITE, run.train.batches[index], line)
  return NonFiniteLoss(
    f"step {index + 1}: loss is {line['loss']}, grad_norm {line['grad_norm']}; the "
    f"batch is in {kept}, the last checkpoint is sound. Lower "
    "Optimizer.learning_rate, raise warmup_steps, or look at the batch"
  )


def export_adapter(run_dir: Path, run: Run, params: Params) -> None:
  """Writes the adapters in PEFT's format, unless they are there."""
  beside = run_dir / f"{ADAPTER}.tmp"
  shutil.rmtree(beside, ignore_errors=True)
  if (run_dir / ADAPTER).exists():
    return
  start, base = run.experiment.start, run.frozen[BASE]["lm"]
  name = None
  if isinstance(start, Pretrained):
    name = start.directory
  elif isinstance(start, Trained):
    name = str(run_dir / START / POLICY)
  adapter = run.experiment.adapter
  peft.save(
    beside, run.model.config, adapter, params=params["lm"], base=base, base_name=name
  )
  beside.rename(run_dir / ADAPTER)


def _title(experiment: Experiment) -> str:
  use, data = experiment.objective, experiment.data
  hparams = ", ".join(f"{name}={value}" for name, value in use.hparams.items())
  return f"{use.name}({hparams}) on {data.path}"
