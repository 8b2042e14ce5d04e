"""Makes the program of a run on rollouts: iterations of sampling, feedback, updates.

One program for every method that trains on samples of its policy. Methods differ in
objective, judge and pair construction. Rollouts are a function of the seed, the
iteration and the row, are written before they are trained on, and a checkpoint follows
the updates: a run killed anywhere resumes bit for bit and asks no judge twice.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xpo_jax.config.experiment import Experiment, stages
from xpo_jax.config.sampling import Opponent, SamplerCorrection, Sampling
from xpo_jax.data import audit
from xpo_jax.data.pack import Batch
from xpo_jax.data.sources import Loaded
from xpo_jax.feedback import critic
from xpo_jax.feedback.protocol import SelfFeedback
from xpo_jax.feedback.teacher import TEACHER, Teacher
from xpo_jax.models import heads, lora, transformer
from xpo_jax.models.transformer import Model
from xpo_jax.ops import kl_control, sampler_correction, token_stats
from xpo_jax.sharding import nf4, place
from xpo_jax.train import (
  aux_losses,
  export,
  loading,
  minibatches,
  references,
  rewards,
  rollouts,
  run_directory,
  state,
  step,
  validate,
)
from xpo_jax.train.aux_losses import AuxLosses
from xpo_jax.train.loading import Datasets, HeldOut, Inputs, LoadedStart, PromptSet
from xpo_jax.train.minibatches import RowSizes
from xpo_jax.train.pair_construction import PairConstruction
from xpo_jax.train.progress import Say
from xpo_jax.train.rollouts import RolloutBatch, SamplerParams
from xpo_jax.train.state import Program, RolloutState, final_params
from xpo_jax.types import Objective, Params, TokenStat

SHOWN = (
  "rollout/reward",
  "rollout/kl",
  "rollout/length",
  "loss",
  "eval/reward",
  "rollout/idle",
  "time/rollout",
  "time/feedback",
  "time/update",
)
OLD_LOGP, OLD_VALUE = "old_logp_BKT", "old_value_BKT"
# Folded into the key in place of the iteration, or before it.
_HELD_OUT, _FURTHER = np.uint32(0xFFFFFFFF), np.uint32(0xFFFFFFFE)


class Parts(NamedTuple):
  """Everything that is constant over the iterations of a run.

  Attributes:
    experiment: the run.
    run_dir: its directory.
    objective: built, its statistics at the sampling temperature.
    pairs: the pair construction.
    controller: of beta, or None.
    judge: gives rewards; see `rewards.facing`.
    model: of policy and reference.
    tokenizer: of the policy.
    begin: the start, without its weights.
    sampling_mesh: devices that sample; None: one device.
    prompts: training prompts.
    held_out: held-out prompts, or None.
    ref: `{"lm": ...}`, the reference that the run starts with.
    teacher: of a distillation, placed; None without.
    frozen: `{"base": what adapters are added to}`, the same arrays as `ref` unless the
      run has a separate reference; or {}.
    take: the optimiser step; see `step.make_step`.
    aux: the auxiliary losses and their batches.
    record: see `references.recorder`.
    sizes: of the batches of rollouts.
    place: puts a batch on the mesh.
    counts: of the prompts, and digests of inputs.
    say: prints a line.
  """

  experiment: Experiment
  run_dir: Path
  objective: Objective
  pairs: PairConstruction
  controller: kl_control.Controller | None
  judge: rewards.Judge | SelfFeedback
  model: Model
  tokenizer: Any
  begin: LoadedStart
  sampling_mesh: Mesh | None
  prompts: PromptSet
  held_out: PromptSet | None
  ref: Params
  teacher: Teacher | None
  frozen: Mapping[str, Params]
  take: step.Step
  aux: AuxLosses
  record: Callable[[Mapping[str, Params], Batch], dict[str, jax.Array]]
  sizes: RowSizes
  place: Callable[[Batch], Batch]
  counts: Mapping[str, Any]
  say: Say


def check(experiment: Experiment, datasets: Datasets) -> Inputs:
  """Validates a run on rollouts before anything is made.

  Returns:
    The records of its prompts, and the judge; None for what a stage or a function makes
    when the run starts.

  Raises:
    ValueError: see `validate.check_rollouts` and `loading.check_room`, the latter
      without prompt lengths in a tokenizer that is not trained yet; bad rows that stop
      the run; no rows; a judge that cannot be made.
  """
  validate.check_rollouts(experiment, datasets)
  prompts, feedback = experiment.data.prompts, experiment.data.feedback
  loaded = judge = None
  if loading.is_there(prompts):
    loaded = loading.load_checked(prompts, datasets)
    if not loaded.records:
      raise ValueError(f"Prompts.path {prompts.path!r}: {loaded.name} holds no prompt")
    validate.check_start(experiment, loaded, datasets)
  if not any(stages(feedback)):
    judge = rewards.judge(feedback)
  return Inputs(loaded, judge)


def prepare(
  experiment: Experiment, run_dir: Path, inputs: Inputs, datasets: Datasets, say: Say
) -> Program:
  """Reads start and prompts, makes judge, step and state.

  The arguments are those of `records_program.prepare`.

  Raises:
    ValueError: no prompts, or prompts that cannot be used; bad rows
      (`records.BadRecords`) of training or held-out prompts, where they stop the run;
      see `loading.check_room`.
  """
  parts, first = assemble(experiment, run_dir, inputs, datasets, say)
  data, sampling = experiment.data, experiment.data.sampling
  parameters = nf4.count([first.train.params, parts.frozen])
  sizes = {
    "iterations": data.iterations,
    "prompts_per_iteration": data.prompts_per_iteration,
    "completions": sampling.completions,
    "parameters": parameters,
    "parameters_trained": sum(x.size for x in jax.tree.leaves(first.train.params)),
  }
  adapter = experiment.adapter
  frozen = parts.frozen
  fetch = export.policy_writer(
    adapter,
    parts.model,
    frozen,
    parts.tokenizer,
    export.base_name(parts.begin, run_dir),
  )

  def policy(now: RolloutState) -> Params:
    return state.merged(final_params(now.train), frozen, adapter)

  def fetch_policy(now: RolloutState, params: Params) -> export.Write:
    return fetch(now.train, params)

  return Program(
    state=first,
    total=data.iterations,
    advance=functools.partial(iterate, parts),
    evaluate=parts.held_out and functools.partial(evaluate, parts),
    line=_line,
    batch=None,
    policy=policy,
    export=fetch_policy,
    export_base=export.base_writer(parts.begin, parts.model, frozen),
    model=parts.model,
    tokenizer=parts.tokenizer,
    sizes=sizes,
    headline=(
      f"{data.iterations} iterations of {data.prompts_per_iteration} prompts x "
      f"{sampling.completions}"
    ),
    shown=SHOWN,
    log_every=1,
    checkpoint_every=1,
  )


def assemble(
  experiment: Experiment, run_dir: Path, inputs: Inputs, datasets: Datasets, say: Say
) -> tuple[Parts, RolloutState]:
  """Makes the parts of a run and its state before the first iteration (`prepare`)."""
  data, mesh = experiment.data, validate.make_mesh(experiment.mesh)
  loaded, judge = inputs
  if loaded is None:
    prompts = data.prompts
    loaded = loading.load(prompts, prompts, datasets, run_dir / loading.RECORDS)
  build = at_temperature(experiment.objective.build, data.temperature)
  if data.sampler_correction is not None:
    build = corrected(build, data.sampler_correction)
  begin = loading.start(experiment, run_dir, loaded, mesh)
  model, adapter = transformer.model(begin.config), experiment.adapter
  models = {"policy": model, references.ROLE: model}
  trained, values = lora.trainable_model(model, adapter), None
  if data.critic_init is not None:
    values = critic.load(data.critic_init, begin.tokenizer, begin.config)
    build = critic.judged_by(build)
    models[critic.CRITIC] = values.model
  objective = build()
  chosen, held_out, counts = loading.prompt_sets(
    experiment, loaded, begin.tokenizer, run_dir, datasets
  )
  loading.check_room(begin.config, data.sampling, chosen.width)
  counts |= loading.adapted(experiment, begin.config)
  put = place.batch_placer(mesh)
  aux = aux_losses.prepare(
    experiment.aux_losses, begin.tokenizer, run_dir, datasets, put
  )
  if aux.losses:
    counts["aux_losses"] = aux.counts
  other = references.load(experiment, begin)
  teacher = loading.teacher(experiment, begin)
  counts |= references.start_digests(experiment, begin, other, teacher)
  if judges := rewards.digests(data.feedback.source):
    counts[run_directory.JUDGES_DIGEST] = judges
  run_directory.write_counts(run_dir, counts)
  for note in audit.notes(counts):
    say(f"note: {note}")
  needed = aux_losses.joined(objective, aux.losses)
  head = heads.init_value_head(begin.config.width)
  first, shardings = state.first(
    experiment,
    needed,
    begin.params,
    head,
    trained,
    mesh,
    values,
    begin.adapter and begin.adapter.params,
  )
  frozen = {}
  if adapter is None:
    ref = {"lm": place.copied(first.params["lm"])}
  else:
    base = state.frozen(mesh, model, begin.params["lm"])
    frozen[state.BASE] = ref = {"lm": base}
  if other is not None:
    if data.ref_update_every is not None:  # it becomes a policy, merged
      other = references.merged(begin, other)
    ref, models[references.ROLE] = references.place(mesh, model, frozen, other)
  if teacher is not None:
    placed = state.frozen(mesh, teacher.model, teacher.params["lm"])
    teacher = teacher._replace(params={"lm": placed})
    models[TEACHER] = teacher.model
  controller = data.kl_controller and data.kl_controller.build()
  parts = Parts(
    experiment=experiment,
    run_dir=run_dir,
    objective=objective,
    pairs=validate.pair_construction_of(experiment),
    controller=controller,
    judge=rewards.judge(data.feedback) if judge is None else judge,
    model=model,
    tokenizer=begin.tokenizer,
    begin=begin._replace(params={}, adapter=None),
    sampling_mesh=validate.sampling_mesh(experiment),
    prompts=chosen,
    held_out=held_out,
    ref=ref,
    teacher=teacher,
    frozen=frozen,
    take=step.make_step(
      build,
      models,
      experiment.optimizer,
      data.iterations * data.minibatches * data.ppo_epochs,
      mesh=mesh,
      shardings=shardings,
      adapter=adapter,
      aux_losses=aux.losses,
      moments=experiment.precision.moments,
    ),
    aux=aux,
    record=references.recorder(
      models | {"policy": lora.attached_model(model, adapter)},
      recorded_stats(objective, data.sampling),
      mesh,
    ),
    sizes=RowSizes(
      data.rows_per_step,
      data.microbatches,
      chosen.width,
      data.max_completion_tokens,
    ),
    place=put,
    counts=counts,
    say=say,
  )
  return parts, RolloutState(
    step=place.replicate(mesh, jnp.zeros((), jnp.int32)),
    train=first,
    ref=None if data.ref_update_every is None else ref,
    sampler=tuple(place.copied(first.params) for _ in range(data.sampling.staleness)),
    beta=None
    if controller is None
    else place.replicate(mesh, jnp.float32(controller.beta)),
    prompts_taken=None
    if data.dynamic_sampling is None
    else place.replicate(mesh, jnp.int32(0)),
  )


def iterate(
  parts: Parts, now: RolloutState, index: int
) -> tuple[RolloutState, dict[str, float]]:
  """Runs one iteration: rollouts, feedback, updates, controller, reference.

  Args:
    parts: see `Parts`. Rollouts are written to its directory, or read where they exist.
    now: state after `index` iterations; donated.
    index: of the iteration, from 0.

  Returns:
    The state after it and its metrics.

  Raises:
    ValueError: feedback that is NaN, where abstentions stop the run.
    NonFiniteLoss: a loss or gradient that is not finite.
  """
  data, sampling = parts.experiment.data, parts.experiment.data.sampling
  if index == 0 and parts.held_out is not None:
    evaluate(parts, now)  # samples of the start, for comparison
  clock = _Clock()
  ref = parts.ref if now.ref is None else now.ref
  sampler = now.sampler[0] if now.sampler else now.train.params
  drawn = _sampled(parts, now, sampler, ref, index, clock)
  reward_BK, present_BK = rewards.shaped(drawn, data.feedback, sampling)
  values = _recorded(parts, drawn, sampler, ref)
  kl_BK = minibatches.seq_kl(values)
  line = rewards.summary(drawn, reward_BK, present_BK, kl_BK, sampling)
  if data.dynamic_sampling is not None:
    used_B = rewards.used(drawn, present_BK, data.prompts_per_iteration)
    line |= rewards.sampling_cost(used_B)
    present_BK = present_BK * used_B[:, None]
  before = None
  if sampling.staleness:
    before = place.copied(now.train.params)  # the state is donated
  examples, arrays = minibatches.construct(
    parts.pairs, drawn, values, reward_BK, present_BK
  )
  trained, measured = _update(parts, now, ref, index, examples, arrays)
  clock.stop("update")
  if not measured:
    parts.say(
      f"iteration {index + 1}: nothing to learn from, no update; rewards differ on "
      f"{line['rollout/frac_informative_prompts']:.0%} of the prompts"
    )
  line = measured | line | clock.metrics(drawn)
  if now.beta is not None:
    line["beta"] = float(now.beta)
  if now.prompts_taken is not None:
    now = now.replace(prompts_taken=now.prompts_taken + len(drawn.row_B))
  return _after(parts, now, trained, before, index, line, kl_BK.size), line


def evaluate(parts: Parts, now: RolloutState) -> dict[str, float]:
  """Evaluates the policy on held-out prompts with the run's feedback, as `eval/...`.

  Samples as in training, from the policy that would be exported now (the moving average
  of its weights, with `Optimizer.ema`); the random draws are the same at every
  evaluation. Samples are written to `held_out/`, or read where they exist. The KL is to
  the reference that the run started with, and win rates are against samples of it.
  """
  data, held_out = parts.experiment.data, parts.held_out
  at_once = data.sampling.prompts_at_once or data.prompts_per_iteration
  sampling = dataclasses.replace(
    data.sampling,
    column0_source="sample",
    exploration_temperature=None,
    teacher_share=0.0,
    opponent=Opponent(share=1.0) if data.feedback.kind == "win_rates" else None,
    prompts_at_once=None if data.sampling.slots else at_once,
  )
  params = final_params(now.train)
  path = parts.run_dir / run_directory.HELD_OUT / f"{int(now.step):06d}.jsonl"
  drawn = rollouts.written(path)
  if drawn is None:
    drawn = rollouts.draw(
      parts.model,
      SamplerParams(
        _policy(parts, params),
        parts.ref["lm"],
        adapter=parts.experiment.adapter,
        mesh=parts.sampling_mesh,
      ),
      held_out,
      np.arange(len(held_out.ids)),
      sampling,
      parts.tokenizer,
      iteration=-1,
      key=jax.random.fold_in(_sampling_key(parts), _HELD_OUT),
    )
    drawn = rewards.ask(_judge(parts, params), drawn, data.feedback)
    rollouts.write(path, drawn)
  reward_BK, present_BK = rewards.shaped(drawn, data.feedback, sampling)
  kl_BK = minibatches.seq_kl(_recorded(parts, drawn, params, parts.ref))
  measured = rewards.summary(drawn, reward_BK, present_BK, kl_BK, sampling)
  return {f"eval/{n.removeprefix('rollout/')}": x for n, x in measured.items()}


def held_out(
  experiment: Experiment,
  run_dir: Path,
  loaded: Loaded,
  tokenizer: Any,
  datasets: Datasets,
) -> HeldOut:
  """Loads the held-out prompts of a run.

  Raises:
    ValueError: the run holds nothing out.
  """
  _, chosen, _ = loading.prompt_sets(experiment, loaded, tokenizer, run_dir, datasets)
  if chosen is None:
    raise ValueError(
      f"{run_dir} holds no prompts out; set Evaluation.share or Evaluation.path and "
      "train again"
    )
  return HeldOut(list(chosen.ids), chosen.texts, [])


def frozen_roles(parts: Parts, ref: Params) -> dict[str, Params]:
  """Frozen parameters of the step by role, with the current reference and the teacher
  where the objective or an auxiliary loss reads them in the step."""
  frozen, losses = dict(parts.frozen), parts.aux.losses
  if aux_losses.read_reference(parts.objective, losses):
    frozen[references.ROLE] = ref
  if aux_losses.read_teacher(parts.objective, losses):
    frozen[TEACHER] = parts.teacher.params
  return frozen


def at_temperature(
  build: Callable[..., Objective], temperature: float
) -> Callable[..., Objective]:
  """Divides the logits by the sampling temperature in every statistic of an objective,
  and in the reported entropy."""

  def tempered(**traced: Any) -> Objective:
    objective = build(**traced)
    if temperature == 1:
      return objective
    stats = step.stats(objective)
    return objective._replace(
      stats=frozenset(token_stats.tempered(stat, temperature) for stat in stats)
    )

  return tempered


def corrected(
  build: Callable[..., Objective], correction: SamplerCorrection
) -> Callable[..., Objective]:
  """Corrects the gradient of an objective for its sampler."""
  arguments = dataclasses.asdict(correction)

  def make(**traced: Any) -> Objective:
    return sampler_correction.corrected(build(**traced), **arguments)

  return make


def recorded_stats(objective: Objective, sampling: Sampling) -> tuple[TokenStat, ...]:
  """Selects the statistics scored once an iteration: the reference's, the teacher's,
  the values of the policy that sampled, and its log-probs where the sampler's are not
  the trainer's: its weights are of another dtype, or the objective compares the two."""
  temperature = sampling.temperature
  roles = (references.ROLE, TEACHER)
  frozen = [stat for role in roles for stat in references.cacheable(objective, role)]
  stats = {stat.field: stat for stat in frozen}
  ref_logp = token_stats.tempered(token_stats.REF_LOGP, temperature)
  stats.setdefault(ref_logp.field, ref_logp)  # the run's KL, whatever the objective
  if OLD_VALUE in objective.columns:
    field = token_stats.VALUE.field
    (value,) = (stat for stat in objective.stats if stat.field == field)
    stats[OLD_VALUE] = value._replace(field=OLD_VALUE)
  if "sampler_logp_BKT" in objective.columns or sampling.weights_dtype is not None:
    logp = token_stats.tempered(token_stats.LOGP, temperature)
    stats[OLD_LOGP] = logp._replace(field=OLD_LOGP)
  return tuple(stats[field] for field in sorted(stats))


def _roles(parts: Parts, params: Params) -> dict[str, Params]:
  """Parameters for sampling and scoring by role; see `state.roles`."""
  return state.roles(params, parts.frozen, parts.experiment.adapter)


def _policy(parts: Parts, params: Params) -> Params:
  return _roles(parts, params)["policy"]["lm"]


def _judge(parts: Parts, params: Params) -> rewards.Judge:
  return rewards.facing(
    parts.judge, parts.model, _policy(parts, params), parts.tokenizer
  )


def _sampling_key(parts: Parts) -> jax.Array:
  return jax.random.fold_in(jax.random.key(parts.experiment.seed), 4)


def _sampled(
  parts: Parts,
  now: RolloutState,
  sampler: Params,
  ref: Params,
  index: int,
  clock: "_Clock",
) -> RolloutBatch:
  """Samples and judges the completions of an iteration, one round or, with dynamic
  sampling, as many as it takes.

  Every round is written, with those before it, before the next is sampled: what a
  killed run has of them is read, and no judge asked about it again.
  """
  data = parts.experiment.data
  count = data.prompts_per_iteration
  params = SamplerParams(
    _policy(parts, sampler),
    ref["lm"],
    _policy(parts, final_params(now.train)),
    parts.teacher,
    parts.experiment.adapter,
    parts.sampling_mesh,
  )
  path = parts.run_dir / run_directory.ROLLOUTS / f"{index + 1:06d}.jsonl"
  drawn = rollouts.written(path)
  while drawn is None or _too_few(parts, drawn):
    round_ = 0 if drawn is None else len(drawn.row_B) // count
    taken = index * count if now.prompts_taken is None else int(now.prompts_taken)
    start = taken + round_ * count
    further = rollouts.draw(
      parts.model,
      params,
      parts.prompts,
      rollouts.order(len(parts.prompts.ids), data.prompts.seed, start, count),
      data.sampling,
      parts.tokenizer,
      iteration=index,
      key=_round_key(parts, index, round_),
    )
    clock.stop("rollout")
    further = rewards.ask(_judge(parts, now.train.params), further, data.feedback)
    drawn = further if drawn is None else rollouts.joined(drawn, further)
    rollouts.write(path, drawn)
    clock.stop("feedback")
  return drawn


def _too_few(parts: Parts, drawn: RolloutBatch) -> bool:
  """Whether dynamic sampling samples another round."""
  data = parts.experiment.data
  count = data.prompts_per_iteration
  if len(drawn.row_B) >= (data.dynamic_sampling or 1) * count:
    return False
  _, present_BK = rewards.shaped(drawn, data.feedback, data.sampling)
  return rewards.used(drawn, present_BK, count).sum() < count


def _round_key(parts: Parts, index: int, round_: int) -> jax.Array:
  """The key of a round of sampling; that of the first is the iteration's."""
  key = _sampling_key(parts)
  if round_ == 0:
    return jax.random.fold_in(key, index)
  iteration = jax.random.fold_in(jax.random.fold_in(key, _FURTHER), index)
  return jax.random.fold_in(iteration, round_)


def _recorded(parts: Parts, drawn: RolloutBatch, sampler: Params, ref: Params):
  """Log-probs as sampled, and the scored statistics of the same tokens."""
  roles = _roles(parts, sampler) | {references.ROLE: ref}
  if parts.teacher is not None:
    roles[TEACHER] = parts.teacher.params
  return minibatches.record(drawn, parts.record, roles, parts.sizes, parts.place)


def _update(parts, now, ref, index, examples, arrays):
  """Takes the optimiser steps; metrics are means over them, {} without a step."""
  experiment = parts.experiment
  if not examples:
    return now.train, {}
  batches, cache = minibatches.cut(
    experiment.data, experiment.seed, index, examples, arrays, parts.pairs, parts.sizes
  )
  if index == 0:
    run_directory.write_shown(parts.run_dir, batches[0], parts.tokenizer)
  frozen = frozen_roles(parts, ref)
  beta = {} if now.beta is None else {"beta": float(now.beta)}
  hparams = step.hparams(experiment.optimizer, **beta)
  trained, measured, done = now.train, [], int(now.train.step)
  for at in range(len(batches)):
    batch = parts.place(references.fill(cache, batches[at]))
    aux_batches = parts.aux.batch(done + at)
    trained, metrics = parts.take(trained, frozen, batch, hparams, aux_batches)
    measured.append(metrics)
  measured = jax.device_get(measured)
  for at, metrics in enumerate(measured):
    run_directory.refuse_non_finite(
      parts.run_dir,
      f"iteration {index + 1}, update {at + 1}",
      {name: float(x) for name, x in metrics.items()},
      lambda at=at: references.fill(cache, batches[at]),
    )
  found = list(map(step.present, measured))
  names = dict.fromkeys(name for metrics in found for name in metrics)
  means = {n: float(np.mean([m[n] for m in found if n in m])) for n in names}
  return trained, {"loss": means.pop("loss")} | means | {"updates": len(measured)}


def _line(index: int, numbers: Mapping[str, float], seconds: float) -> dict[str, float]:
  """A line of metrics.jsonl; the times are measured by `iterate`."""
  del seconds
  return {"step": index + 1} | dict(numbers)


class _Clock:
  """Seconds of an iteration by what took them, added up over rounds of sampling."""

  def __init__(self):
    self.seconds = {"rollout": 0.0, "feedback": 0.0, "update": 0.0}
    self._since = time.perf_counter()

  def stop(self, name: str) -> None:
    """Adds the seconds since the last call, or since the start."""
    now = time.perf_counter()
    self.seconds[name] += now - self._since
    self._since = now

  def metrics(self, drawn: RolloutBatch) -> dict[str, float]:
    """The seconds as metrics `time/...`, and the tokens sampled per second."""
    total = sum(self.seconds.values())
    tokens = float(drawn.length_BK.sum())
    return {f"time/{name}": seconds for name, seconds in self.seconds.items()} | {
      "time/seconds": total,
      "time/tokens_per_second": tokens / total,
    }


def _after(parts, now, trained, before, index, line, episodes) -> RolloutState:
  """The state after an iteration, with controller, reference and sampler updated."""
  beta, ref, every = now.beta, now.ref, parts.experiment.data.ref_update_every
  if beta is not None:
    observation = kl_control.Observation(
      jnp.float32(line["rollout/kl"]), jnp.float32(episodes)
    )
    beta = jnp.float32(parts.controller.update(beta, observation))
  if every is not None and (index + 1) % every == 0:
    merged = state.merged(trained.params, parts.frozen, parts.experiment.adapter)
    ref = {"lm": place.copied(merged["lm"])}
  sampler = now.sampler
  if sampler:
    sampler = (*sampler[1:], before)
  return RolloutState(now.step + 1, trained, ref, sampler, beta, now.prompts_taken)
