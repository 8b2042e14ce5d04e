"""The online loop: sample, ask for feedback, arrange, update; over and over.

One loop for every method that learns from its own samples. What differs is the
objective, the judge and the arrangement. Rollouts are a function of the seed, the
iteration and the row, are written before they are learned from, and a checkpoint
follows the updates: a run killed anywhere goes on bit for bit and asks no judge twice.

A run directory holds what an offline run's does (see `offline`), and `rollouts/`, JSON
lines of each iteration, `held_out/`, the same of each evaluation by iterations done.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Trained
from xpo_jax.config.on_policy import OnlineExperiment, Opponent
from xpo_jax.data import audit
from xpo_jax.ops import kl_control
from xpo_jax.train import (
  checkpoint,
  loading,
  metrics,
  minibatches,
  offline,
  online_setup,
  progress,
  references,
  rewards,
  rollouts,
  run_directory,
  setup,
  step,
  validate,
)
from xpo_jax.train.loading import Datasets
from xpo_jax.train.offline import NonFiniteLoss, Result
from xpo_jax.train.online_setup import Run
from xpo_jax.train.rollouts import Rollouts
from xpo_jax.train.state import OnlineState, final_params
from xpo_jax.types import Params

ROLLOUTS, HELD_OUT = "rollouts", "held_out"
_SHOWN = ("rollout/reward", "rollout/kl", "rollout/length", "loss", "eval/reward")
_SHOWN += ("rollout/idle", "time/rollout", "time/feedback", "time/update")
_HELD_OUT = jnp.uint32(0xFFFFFFFF)  # the iteration that held-out samples draw from


def train(
  experiment: OnlineExperiment,
  run_dir: str | Path,
  *,
  datasets: Datasets | None = None,
  say: progress.Say = progress.say,
) -> Result:
  """Runs an online experiment from its start.

  Args:
    experiment: what to do.
    run_dir: a directory that does not exist yet.
    datasets: records by name, where `Prompts.path` is such a name and not a file.
    say: where plain lines go.

  Raises:
    ValueError: the run directory exists, or anything about the experiment or its
      prompts is wrong, before anything expensive; feedback that is no number.
    JudgeError: no judge can be asked, before anything expensive.
    NonFiniteLoss: the run diverged.
  """
  run_dir, datasets = Path(run_dir), datasets or {}
  run_directory.refuse_taken(run_dir)
  say(f"{run_dir}: {_title(experiment)}")
  loaded = validate.load(experiment, datasets)
  judge = rewards.judge(experiment.feedback)  # asked for now: the start may be hours
  computed = (offline.CHECKPOINTS, offline.START, ROLLOUTS, HELD_OUT)
  with run_directory.begun(run_dir, experiment, computed):
    return _go(experiment, run_dir, loaded, judge, datasets, say)


def resume(
  run_dir: str | Path,
  experiment: OnlineExperiment | None = None,
  *,
  datasets: Datasets | None = None,
  say: progress.Say = progress.say,
) -> Result:
  """Continues a run bit for bit, from its newest valid checkpoint; see
  `offline.resume`."""
  run_dir, datasets = Path(run_dir), datasets or {}
  kept = run_directory.kept(run_dir, experiment)
  say(f"{run_dir}: resuming {_title(kept)}")
  loaded = loading.load(kept.prompts, kept.prompts, datasets)
  return _go(kept, run_dir, loaded, rewards.judge(kept.feedback), datasets, say)


def _title(experiment: OnlineExperiment) -> str:
  use = experiment.objective
  hparams = ", ".join(f"{name}={value}" for name, value in use.hparams.items())
  source = experiment.feedback.source.name
  return f"{use.name}({hparams}) on samples for {experiment.prompts.path}, by {source}"


def _go(experiment, run_dir, loaded, judge, datasets, say) -> Result:
  stage = None
  if isinstance(experiment.start, Trained):
    stage = run_dir / offline.START
    before = offline.stage_before(experiment.start.experiment, stage, datasets, say)
    if before is not None and not before.finished:
      return before._replace(run_dir=run_dir)
    stage = stage / offline.POLICY
  run = online_setup.prepare(experiment, run_dir, loaded, stage, datasets, judge)
  sizes = _sizes(run)
  say(
    f"{sizes['parameters']:,} parameters, {experiment.iterations} iterations of "
    f"{experiment.prompts_per_iteration} prompts x {experiment.sampling.completions}; "
    "compiling in the first"
  )
  meta = {"experiment": yaml_file.to_dict(experiment), **yaml_file.surroundings()}
  manager = checkpoint.open_manager(run_dir / offline.CHECKPOINTS, experiment.loop.keep)
  state = run_directory.restored(manager, run_dir, run.state, meta, say)
  run = run._replace(state=None)  # donated with the first step
  with checkpoint.preemption() as asked:
    state = _loop(run, run_dir, state, manager, meta, asked, say)
  manager.close()
  trained, done = final_params(state.train), int(state.step)
  params = setup.merged(run, trained)
  finished = done == experiment.iterations
  if finished:
    if experiment.adapter is not None:
      offline.export_adapter(run_dir, run, trained)
    run_directory.export(
      run_dir / offline.POLICY, run.model.config, params, run.tokenizer
    )
    sizes["final"] = metrics.read(run_dir)[-1]
    run_directory.write_json(run_dir / offline.SUMMARY, sizes)
    say(f"done: {run_dir / offline.POLICY} is a Hugging Face directory")
  else:
    say(f"stopped by SIGTERM after iteration {done}: xpo resume {run_dir}")
  return Result(run_dir, run.model, params, run.tokenizer, done, finished)


def _sizes(run: Run) -> dict[str, Any]:
  experiment, params = run.experiment, run.state.train.params
  return {
    "iterations": experiment.iterations,
    "prompts_per_iteration": experiment.prompts_per_iteration,
    "completions": experiment.sampling.completions,
    "parameters": sum(x.size for x in jax.tree.leaves([params, run.frozen])),
    "parameters_trained": sum(x.size for x in jax.tree.leaves(params)),
  }


def _loop(run, run_dir, state, manager, meta, asked, say) -> OnlineState:
  loop, iterations = run.experiment.loop, run.experiment.iterations
  done = int(state.step)
  if done == iterations:
    return state
  writer = metrics.open_writer(
    run_dir, done, run_directory.wandb(loop.wandb, run_dir, meta)
  )
  with progress.following(iterations, done, say, _SHOWN) as report:
    try:
      if run.held_out is not None and not done:
        evaluate(run, run_dir, state)  # the start's samples, to compare with
      for index in range(done, iterations):
        state, line = iterate(run, run_dir, state, index, say)
        now, last = index + 1, index + 1 == iterations
        if run.held_out is not None and (
          last or run_directory.due(loop.eval_every, now)
        ):
          line |= evaluate(run, run_dir, state)
        metrics.write(writer, line)
        metrics.flush(writer)
        if index == done or last or run_directory.due(loop.log_every, now):
          report(line)
        stopping = asked.is_set()  # once: a signal from here on is seen later
        if last or stopping or run_directory.due(loop.checkpoint_every or 1, now):
          checkpoint.save(manager, state, meta)
        if stopping:
          break
    finally:
      metrics.close(writer)
  return state


def iterate(
  run: Run,
  run_dir: Path,
  state: OnlineState,
  index: int,
  say: progress.Say = progress.say,
) -> tuple[OnlineState, dict[str, float]]:
  """One iteration: rollouts, feedback, updates, controller, reference.

  Args:
    run: see `online_setup.prepare`.
    run_dir: rollouts are written to it, or read where they are there already.
    state: after `index` iterations; donated.
    index: of the iteration, from 0.
    say: where warnings go.

  Returns:
    The state after it and its line of metrics.

  Raises:
    ValueError: feedback that is no number.
    NonFiniteLoss: a loss or gradient that is not finite.
  """
  experiment, sampling = run.experiment, run.experiment.sampling
  clock = [time.perf_counter()]
  ref = run.ref if state.ref is None else state.ref
  sampler = state.sampler[0] if state.sampler else state.train.params
  path = run_dir / ROLLOUTS / f"{index + 1:06d}.jsonl"
  if path.exists():
    drawn = rollouts.read(path)
  else:
    drawn = _draw(run, sampler, ref, index, final_params(state.train))
  clock.append(time.perf_counter())
  if drawn.reward_BK is None:
    drawn = rewards.ask(_judge(run, state.train.params), drawn, experiment.feedback)
    rollouts.write(path, drawn)
  clock.append(time.perf_counter())
  reward_BK, present_BK = rewards.shaped(drawn, experiment.feedback, sampling)
  values = minibatches.recorded(run, drawn, sampler, ref)
  kl_BK = minibatches.seq_kl(values)
  line = rewards.summary(drawn, reward_BK, present_BK, kl_BK, sampling)
  before = None
  if sampling.staleness:
    before = jax.tree.map(jnp.copy, state.train.params)  # the state is donated
  trained, measured = _update(run, run_dir, state, ref, index, drawn, values, line)
  clock.append(time.perf_counter())
  if not measured:
    say(
      f"iteration {index + 1}: nothing to learn from, no update; rewards differ on "
      f"{line['rollout/frac_informative_prompts']:.0%} of the prompts"
    )
  line = {"step": index + 1} | measured | line | _times(clock, drawn)
  if state.beta is not None:
    line["beta"] = float(state.beta)
  return _after(run, state, trained, before, index, line, kl_BK.size), line


def _draw(
  run: Run, sampler: Params, ref: Params, index: int, average: Params | None = None
) -> Rollouts:
  experiment = run.experiment
  count = experiment.prompts_per_iteration
  row_B = rollouts.order(
    len(run.prompts.ids), experiment.prompts.seed, index * count, count
  )
  return rollouts.draw(
    run.model,
    _policy(run, sampler),
    run.prompts,
    row_B,
    experiment.sampling,
    run.tokenizer,
    iteration=index,
    key=jax.random.fold_in(_sampling_key(run), index),
    ref_params=ref["lm"],
    average=average and _policy(run, average),
  )


def _policy(run: Run, params: Params) -> Params:
  return online_setup.roles(run, params)["policy"]["lm"]


def _judge(run: Run, params: Params) -> rewards.Judge:
  return rewards.facing(run.judge, run.model, _policy(run, params), run.tokenizer)


def _sampling_key(run: Run) -> jax.Array:
  return jax.random.fold_in(jax.random.key(run.experiment.seed), 4)


def _update(run, run_dir, state, ref, index, drawn, values, line):
  """The inner steps; the metrics are means over them, none where there was no step."""
  feedback, sampling = run.experiment.feedback, run.experiment.sampling
  reward_BK, present_BK = rewards.shaped(drawn, feedback, sampling)
  examples, kept = minibatches.arranged(run, drawn, values, reward_BK, present_BK)
  if not examples:
    return state.train, {}
  batches, cache = minibatches.batches_of(run, index, examples, kept)
  if index == 0:
    rows = audit.inspect_tokens(batches[0], run.tokenizer)[: offline.SHOWN_ROWS]
    shown = [[token._asdict() for token in row] for row in rows]
    run_directory.write_json(run_dir / offline.SHOWN, shown)
  frozen = online_setup.frozen(run, ref)
  beta = {} if state.beta is None else {"beta": float(state.beta)}
  hparams = step.hparams(run.experiment.optimizer, **beta)
  trained, measured, done = state.train, [], int(state.train.step)
  for at in range(len(batches)):
    batch = run.place(references.fill(cache, batches[at]))
    trained, found = run.step(
      trained, frozen, batch, hparams, run.beside.batch(done + at)
    )
    measured.append(found)
  measured = jax.device_get(measured)
  for at, found in enumerate(measured):
    if not np.isfinite([found["loss"], found["grad_norm"]]).all():
      batch = references.fill(cache, batches[at])
      numbers = {n: float(x) for n, x in found.items()}
      kept = run_directory.keep_batch(run_dir / offline.NONFINITE, batch, numbers)
      raise NonFiniteLoss(
        f"iteration {index + 1}, update {at + 1}: loss is {found['loss']}, grad_norm "
        f"{found['grad_norm']}; the batch is in {kept}, the last "
        "checkpoint is sound. Lower Optimizer.learning_rate, or look at the rollouts"
      )
  means = {n: float(np.mean([one[n] for one in measured])) for n in measured[0]}
  return trained, {"loss": means.pop("loss")} | means | {"updates": len(measured)}


def _times(clock: Sequence[float], drawn: Rollouts) -> dict[str, float]:
  rollout, feedback, update = np.diff(clock)
  seconds = clock[-1] - clock[0]
  tokens = float(drawn.length_BK.sum())
  return {
    "time/rollout": float(rollout),
    "time/feedback": float(feedback),
    "time/update": float(update),
    "time/seconds": seconds,
    "time/tokens_per_second": tokens / seconds,
  }


def _after(run, state, trained, before, index, line, episodes) -> OnlineState:
  """The state after an iteration: controller, reference and sampler moved on."""
  beta, ref, every = state.beta, state.ref, run.experiment.ref_update_every
  if beta is not None:
    seen = kl_control.Observation(
      jnp.float32(line["rollout/kl"]), jnp.float32(episodes)
    )
    beta = jnp.float32(run.controller.update(beta, seen))
  if every is not None and (index + 1) % every == 0:
    merged = setup.merged(run, trained.params)
    ref = {"lm": jax.tree.map(jnp.copy, merged["lm"])}
  sampler = state.sampler
  if sampler:
    sampler = (*sampler[1:], before)
  return OnlineState(jnp.int32(index + 1), trained, ref, sampler, beta)


def evaluate(run: Run, run_dir: Path, state: OnlineState) -> dict[str, float]:
  """The policy on held-out prompts, judged by the run's feedback, as `eval/...`.

  Samples as in training, from the policy that the run would leave now (the average of
  its weights, where `Optimizer.ema` keeps one); the draws are the same at every
  evaluation. They are written to `held_out/`, or read where they are there. The KL is
  to the reference that the run started with, and win rates are against samples of it.
  """
  experiment, held_out = run.experiment, run.held_out
  at_once = experiment.sampling.prompts_at_once or experiment.prompts_per_iteration
  sampling = dataclasses.replace(
    experiment.sampling,
    column0_source="sample",
    exploration_temperature=None,
    opponent=Opponent(share=1.0) if experiment.feedback.kind == "win_rates" else None,
    prompts_at_once=None if experiment.sampling.slots else at_once,
  )
  params = final_params(state.train)
  path = run_dir / HELD_OUT / f"{int(state.step):06d}.jsonl"
  if path.exists():
    drawn = rollouts.read(path)
  else:
    drawn = rollouts.draw(
      run.model,
      _policy(run, params),
      held_out,
      np.arange(len(held_out.ids)),
      sampling,
      run.tokenizer,
      iteration=-1,
      key=jax.random.fold_in(_sampling_key(run), _HELD_OUT),
      ref_params=run.ref["lm"],
    )
    drawn = rewards.ask(_judge(run, params), drawn, experiment.feedback)
    rollouts.write(path, drawn)
  reward_BK, present_BK = rewards.shaped(drawn, experiment.feedback, sampling)
  kl_BK = minibatches.seq_kl(minibatches.recorded(run, drawn, params, run.ref))
  found = rewards.summary(drawn, reward_BK, present_BK, kl_BK, sampling)
  return {f"eval/{n.removeprefix('rollout/')}": x for n, x in found.items()}
