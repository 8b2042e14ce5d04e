"""Trains an experiment: one loop for records and rollouts.

The loop drives a program (`state.Program`) that `records_program` or `rollouts_program`
makes; it does progress, metrics, held-out evaluation, checkpoints and preemption.
"""

import functools
import numbers
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Rollouts
from xpo_jax.data import sealed_files
from xpo_jax.models.lora import Adapter
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import distributed
from xpo_jax.train import (
  checkpoint,
  metrics,
  progress,
  records_program,
  rollouts_program,
  run_directory,
  stages,
  step,
  validate,
)
from xpo_jax.train.loading import Datasets, Inputs
from xpo_jax.train.state import Policy, Program
from xpo_jax.types import Params

# The only place that depends on the kind of data of an experiment.
_MAKERS = {Data: records_program, Rollouts: rollouts_program}


class Result(NamedTuple):
  """Result of a run.

  Attributes:
    run_dir: its directory.
    model: the architecture; None where a stage was stopped before the run began.
    params: the final policy, `{"lm": ...}`, adapters merged; None as for `model`.
    tokenizer: its tokenizer.
    steps: steps done.
    finished: False where a signal ended it early; `resume` continues.
    stopped: the signal that came, SIGTERM or SIGINT (Ctrl-C); "" for none. Where it
      came with the last step, the run is finished, and what it is a stage of is not
      begun.
  """

  run_dir: Path
  model: Model | None
  params: Params | None
  tokenizer: Any
  steps: int
  finished: bool
  stopped: str = ""


def maker(experiment: Experiment) -> Any:
  """Selects the module that checks an experiment and makes its program.

  It has the functions `check`, `prepare` and `held_out`.
  """
  return _MAKERS[type(experiment.data)]


def train(
  experiment: Experiment,
  run_dir: str | Path,
  *,
  store: str | Path | None = None,
  datasets: Datasets | None = None,
  say: progress.Say = progress.say,
) -> Result:
  """Runs an experiment from its start, its stages first.

  Of several processes (`distributed.initialize`) each calls it with equal arguments.

  Args:
    experiment: the run.
    run_dir: a directory that does not exist yet.
    store: directory of stages that several runs share; None: `RUN/stages`.
    datasets: records by name, for a path that is such a name and not a file.
    say: prints a line.

  Raises:
    ValueError: the run directory exists (names the process that writes it, if one
      does), or anything about the experiment, its stages
      or their data is wrong; all of it before the first compile, and no directory is
      left. Feedback that is no number.
    JudgeError: no judge can be asked, before anything expensive.
    ProcessError: one of several processes has other code, data or configuration, does
      not see the directory or cannot write it; or fails while all are checked.
    NonFiniteLoss: the run diverged.
  """
  run_dir, datasets, say = Path(run_dir), datasets or {}, progress.of_first(say)
  distributed.on_first(lambda: run_directory.refuse_existing(run_dir))
  say(f"{run_dir}: {experiment.objective} on {experiment.data.title}")
  inputs = distributed.together(lambda: check(experiment, datasets))
  _refuse_different_processes(experiment, inputs)
  if experiment.loop.checkpoints is not None:
    checkpoint.check_place(experiment.loop.checkpoints, new=True)
  with run_directory.create(run_dir, experiment, say):
    return _run(experiment, run_dir, store, inputs, datasets, say)


def resume(
  run_dir: str | Path,
  experiment: Experiment | None = None,
  *,
  store: str | Path | None = None,
  datasets: Datasets | None = None,
  say: progress.Say = progress.say,
) -> Result:
  """Continues a run bit for bit, from its newest valid checkpoint.

  Args:
    run_dir: the run.
    experiment: to compare with config.yaml, or None for no comparison.
    store: see `train`.
    datasets: see `train`.
    say: prints a line.

  Raises:
    ForeignCode: it names code that is neither the package's nor trusted.
    ValueError: no such run, or another process writes it, or its data or configuration
      changed; shows how.
  """
  run_dir, say = Path(run_dir), progress.of_first(say)
  read = functools.partial(run_directory.read_config, run_dir, experiment)
  recorded = distributed.together(read)
  _refuse_different_processes(recorded, Inputs())
  if recorded.loop.checkpoints is not None:
    checkpoint.check_place(recorded.loop.checkpoints, new=False)
  with run_directory.lock(run_dir, say):
    say(f"{run_dir}: resuming {recorded.objective} on {recorded.data.title}")
    return _run(recorded, run_dir, store, Inputs(), datasets or {}, say)


def check(experiment: Experiment, datasets: Datasets) -> Inputs:
  """Refuses what is wrong with an experiment and its stages, before anything is made.

  Args:
    experiment: the run.
    datasets: see `train`.

  Returns:
    The inputs of the run that were read.
  """
  for stage in stages.of(experiment):
    check(stage.experiment, datasets)
  return maker(experiment).check(experiment, datasets)


def _refuse_different_processes(experiment: Experiment, inputs: Inputs) -> None:
  """Refuses processes that would not run the same program on the same data.

  What is derived from the data is compared once more, by `run_directory.write_counts`.
  """
  if jax.process_count() == 1:
    return
  configuration, loaded = yaml_file.to_dict(experiment), inputs.loaded
  for what, own in {
    "configuration": configuration,
    "code": yaml_file.code_digests(configuration),
    "data": {} if loaded is None else {loaded.name: loaded.sha256},
  }.items():
    run_directory.refuse_different_processes(what, own)


def _run(experiment, run_dir, store, inputs, datasets, say) -> Result:
  store = stages.default_store(run_dir) if store is None else Path(store)

  signals = []  # of the stages

  def run_stage(inner: Experiment, directory: Path) -> bool:
    """Trains a stage or resumes it; returns whether the run goes on."""
    shared = {"store": store, "datasets": datasets, "say": say}
    if distributed.on_first((directory / yaml_file.FILE).exists):
      result = resume(directory, inner, **shared)
    else:
      result = train(inner, directory, **shared)
    signals.append(result.stopped)
    return not result.stopped

  resolved = stages.resolve(experiment, store, datasets, run_stage)
  if resolved is None:
    stopped = signals[-1]
    go_on = run_directory.resume_command(run_dir, experiment)
    say(f"stopped by {stopped} in a stage: {go_on}")
    return Result(run_dir, None, None, None, 0, finished=False, stopped=stopped)
  program = maker(resolved).prepare(resolved, run_dir, inputs, datasets, say)
  sizes = _parameters(program.sizes, experiment.adapter)
  say(f"{sizes}; {program.headline}; compiling the first")
  meta = {"experiment": yaml_file.to_dict(experiment), **yaml_file.surroundings()}
  manager = checkpoint.open_manager(
    run_directory.checkpoints(run_dir, experiment),
    experiment.loop.keep,
    background=jax.process_count() > 1,
  )
  saves = min(experiment.loop.keep + 1, program.total)
  distributed.on_first(lambda: checkpoint.check_room(manager, program.state, saves))
  state = run_directory.restore_state(manager, run_dir, program.state, meta, say)
  program = program._replace(state=None)  # donated with the first step
  state, stopped = _steps(program, experiment, run_dir, state, manager, meta, say)
  manager.close()
  params, done = program.policy(state), int(state.step)
  finished = done == program.total
  if finished:
    policy = run_directory.exported(run_dir, experiment)
    _finish(program, run_dir, policy, state, params)
    kind = "a Hugging Face directory" if experiment.adapter is None else "an adapter"
    say(f"done: {policy} is {kind}")
  else:
    go_on = run_directory.resume_command(run_dir, experiment)
    say(f"stopped by {stopped} after step {done}: {go_on}")
  return Result(
    run_dir, program.model, params, program.tokenizer, done, finished, stopped
  )


def _parameters(sizes: Mapping[str, Any], adapter: Adapter | None) -> str:
  """Says how many parameters there are, and which are trained."""
  total, trained = sizes["parameters"], sizes["parameters_trained"]
  text = f"{total:,} parameters, "
  if adapter is None:
    return text + ("all trained" if trained == total else f"{trained:,} trained")
  share = trained / total
  return text + f"{trained:,} ({share:.2%}) trained: adapters of rank {adapter.rank}"


def _finish(
  program: Program, run_dir: Path, policy: Path, state: Any, params: Params
) -> None:
  """Exports the policy, and writes the summary last."""
  base = None if program.export_base is None else program.export_base()
  write = program.export(state, params)

  def finish() -> None:
    if base is not None:
      sealed_files.write_directory(run_dir / run_directory.BASE, base)
    sealed_files.write_directory(policy, write)
    summary = dict(program.sizes) | {"final": metrics.final(run_dir, program.total)}
    sealed_files.write_json(run_dir / run_directory.SUMMARY, summary)

  distributed.on_first(finish)


def _steps(program, experiment, run_dir, state, manager, meta, say) -> tuple[Any, str]:
  """The loop: steps, metrics, evaluation, checkpoints; ends early on a signal.

  Returns:
    The state, and the signal that came.
  """
  loop, done = experiment.loop, int(state.step)
  if done == program.total:
    return state, ""
  log_every = loop.log_every or program.log_every
  checkpoint_every = loop.checkpoint_every or program.checkpoint_every
  say(_first_checkpoint(done, program.total, checkpoint_every, loop.checkpoint_minutes))
  wandb = run_directory.wandb_arguments(loop.wandb, run_dir, meta)
  writer = metrics.open_writer(run_dir, done, wandb)
  called = _evaluator(program, experiment)
  pending, clock, saved = [], time.perf_counter(), time.monotonic()
  with (
    checkpoint.preemption() as stop,
    progress.following(program.total, done, say, program.shown) as report,
  ):
    try:
      for index in range(done, program.total):
        state, measured = program.advance(state, index)
        now, last = index + 1, index + 1 == program.total
        evaluating = program.evaluate is not None and (
          last or run_directory.due(loop.eval_every, now)
        )
        calling = called is not None and (
          last or run_directory.due(loop.evaluator_every, now)
        )
        # The first step is written alone: its time is compilation.
        showing = index == done or last or run_directory.due(log_every, now)
        by_time = _is_time(loop.checkpoint_minutes, saved, showing)
        stopping = stop.reached(now)  # a later signal acts after the next step
        due = run_directory.due(checkpoint_every, now)
        saving = last or stopping or due or by_time
        apart = 0.0  # seconds that are not of steps
        if evaluating or calling:
          jax.block_until_ready(measured)
          begun = time.perf_counter()
          if evaluating:
            measured = {**measured, **jax.device_get(program.evaluate(state))}
          if calling:
            measured = {**measured, **called(state, now)}
          apart = time.perf_counter() - begun
        pending.append((index, measured))
        if showing or evaluating or calling or saving:
          line, clock = _write(program, run_dir, writer, pending, clock, apart)
          if showing or evaluating or calling:
            report(line)
        if saving:
          metrics.synchronise(writer)  # the checkpoint's steps must have their lines
          checkpoint.save(manager, state, meta)
          saved, clock = time.monotonic(), time.perf_counter()
        if stopping:
          break
    finally:
      metrics.close(writer)
  return state, stop.signal


def _evaluator(
  program: Program, experiment: Experiment
) -> Callable[[Any, int], dict[str, float]] | None:
  """`(state, steps done) -> metrics` of the run's own evaluation; None without."""
  evaluate, config = validate.evaluator_of(experiment), experiment.loop.evaluator
  if evaluate is None:
    return None
  template = experiment.data.source.template

  def called(state: Any, now: int) -> dict[str, float]:
    params = program.policy(state)
    policy = Policy(program.model, params, program.tokenizer, template, now)
    return named_numbers(evaluate(policy), config.name)

  return called


def named_numbers(measured: Any, name: str) -> dict[str, float]:
  """Names what an evaluation returned as metrics of the run.

  Args:
    measured: numbers by name.
    name: of the function that made the evaluation, for messages.

  Raises:
    ValueError: something else than numbers by name.
  """
  if not isinstance(measured, Mapping):
    raise ValueError(
      f"Loop.evaluator {name} returned a {type(measured).__name__}; it must return a "
      "dict of numbers by name"
    )
  line = {}
  for key, value in measured.items():
    scalar = isinstance(value, np.ndarray | jax.Array) and value.size == 1
    if not isinstance(key, str) or not (scalar or isinstance(value, numbers.Real)):
      raise ValueError(
        f"Loop.evaluator {name} returned {key!r}: {value!r}; it must return numbers by "
        "name"
      )
    line[progress.EVALUATOR + key] = float(np.asarray(value).item())
  return line


def _is_time(minutes: float | None, saved: float, showing: bool) -> bool:
  """Whether a checkpoint is due by time. Several processes follow the first one's
  clock, and ask for it only where they wait for metrics to be shown anyway."""
  if minutes is None or (jax.process_count() > 1 and not showing):
    return False
  return distributed.agreed(time.monotonic() - saved >= 60 * minutes)


def _first_checkpoint(
  done: int, total: int, every: int | None, minutes: float | None
) -> str:
  """Describes when the first checkpoint from here on is saved."""
  step = total if every is None else min(total, (done // every + 1) * every)
  sooner = (
    "" if minutes is None else f", or after {minutes:g} minutes if that is sooner"
  )
  return f"first checkpoint: after step {step}{sooner}"


def _write(
  program, run_dir, writer, pending, clock, apart
) -> tuple[dict[str, float], float]:
  """Fetches the metrics of the pending steps at once, checks and writes them.

  Evaluation, which took `apart` seconds after the last of them, is no time of a step;
  neither is a checkpoint.
  """
  fetched = jax.device_get([measured for _, measured in pending])
  now = time.perf_counter()
  seconds = (now - clock - apart) / len(pending)
  for (index, _), values in zip(pending, fetched, strict=True):
    line = program.line(index, step.present(values), seconds)
    if apart and index == pending[-1][0]:
      line["time/evaluation"] = apart
    metrics.write(writer, line)
    metrics.flush(writer)
    if program.batch is not None:
      run_directory.refuse_non_finite(
        run_dir, f"step {index + 1}", line, functools.partial(program.batch, index)
      )
  pending.clear()
  return line, now
