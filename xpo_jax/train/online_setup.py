"""Everything an online run needs, made and checked before the first sample."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xpo_jax.config import optim
from xpo_jax.config.on_policy import OnlineExperiment, Prompts, Sampling
from xpo_jax.data import audit, records, split, tokenise
from xpo_jax.data.pack import Batch, Shape
from xpo_jax.data.sources import Loaded
from xpo_jax.feedback.protocol import SelfFeedback
from xpo_jax.models import heads, lora, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.score import score
from xpo_jax.models.transformer import Model
from xpo_jax.ops import kl_control, token_stats
from xpo_jax.sharding import place
from xpo_jax.train import (
  aux_losses,
  critic,
  loading,
  pair_construction,
  references,
  rewards,
  setup,
  state,
  step,
)
from xpo_jax.train.loading import Datasets
from xpo_jax.train.pair_construction import Arrangement
from xpo_jax.train.rollouts import PromptSet
from xpo_jax.train.state import OnlineState
from xpo_jax.types import Objective, Params, TokenStat

OLD_VALUE = "old_value_BKT"
_BUCKETS = 4  # row lengths that updates may compile for


class Run(NamedTuple):
  """An online run before its first iteration.

  Attributes:
    experiment: what it is.
    objective: built, its statistics at the sampling temperature.
    arrangement: how completions become its layout.
    controller: of beta, or None.
    judge: who gives rewards; see `rewards.facing`.
    model: of policy and reference.
    tokenizer: of the policy.
    prompts: to sample from.
    held_out: to judge the policy on, or None.
    ref: `{"lm": ...}`, the reference that the run starts with.
    frozen: `{"base": what adapters hang on}`, one and the same with `ref`; or {}.
    state: before iteration 1.
    step: see `step.make_step`.
    beside: the parts and their batches.
    record: see `recorder`.
    place: puts a batch on the mesh.
    counts: of the prompts, and a digest of them.
  """

  experiment: OnlineExperiment
  objective: Objective
  arrangement: Arrangement
  controller: kl_control.Controller | None
  judge: rewards.Judge | SelfFeedback
  model: Model
  tokenizer: Any
  prompts: PromptSet
  held_out: PromptSet | None
  ref: Params
  frozen: Mapping[str, Params]
  state: OnlineState
  step: step.Step
  beside: aux_losses.Beside
  record: Callable[[Mapping[str, Params], Batch], dict[str, jax.Array]]
  place: Callable[[Batch], Batch]
  counts: Mapping[str, Any]


def arrangement(experiment: OnlineExperiment) -> Arrangement:
  """The experiment's, or that of the objective's layout.

  Raises:
    ValueError: none is given, and the layout has none of its own.
  """
  if experiment.arrange is not None:
    return experiment.arrange.build()
  objective = experiment.objective.build()
  if objective.layout not in pair_construction.DEFAULTS:
    known = ", ".join(layout.name for layout in pair_construction.DEFAULTS)
    raise ValueError(
      f"{objective.name} needs layout {objective.layout.name}; rollouts become "
      f"{known}, or what OnlineExperiment.arrange makes of them"
    )
  return pair_construction.DEFAULTS[objective.layout]()


def at_temperature(
  build: Callable[..., Objective], temperature: float
) -> Callable[..., Objective]:
  """The objective on policies sampled at a temperature: every log-prob that it reads,
  and the entropy that is reported, is of divided logits."""

  def made(**traced: Any) -> Objective:
    objective = build(**traced)
    if temperature == 1:
      return objective
    stats = step.stats(objective)
    return objective._replace(
      stats=frozenset(token_stats.tempered(stat, temperature) for stat in stats)
    )

  return made


def prepare(
  experiment: OnlineExperiment,
  run_dir: Path,
  loaded: Loaded,
  stage: Path | None = None,
  datasets: Datasets | None = None,
  judge: rewards.Judge | SelfFeedback | None = None,
) -> Run:
  """Reads start and prompts, makes judge, step and state.

  Args:
    experiment: the run; `check` let it pass.
    run_dir: its directory.
    loaded: its prompts' records (`loading.load`).
    stage: policy of the stage before, for a `Trained` start.
    datasets: see `loading.load`.
    judge: of `rewards.judge`; None: made here.

  Raises:
    ValueError: no prompts, or prompts that cannot be used; bad records
      of the held-out prompts as of the others, where they stop the run; what the start
      has no room for (`check_room`).
  """
  mesh = setup.make_mesh(experiment.mesh)
  build = at_temperature(experiment.objective.build, experiment.sampling.temperature)
  begun = loading.begin(experiment, run_dir, loaded, stage)
  model, adapter = transformer.model(begun.config), experiment.adapter
  models = {"policy": model, references.ROLE: model}
  trained, start, own = lora.trainable_model(model, adapter), begun.params, None
  if experiment.critic_init is not None:
    own = critic.load(experiment.critic_init, begun.tokenizer, begun.config)
    build = critic.judged_by(build)
    models[state.CRITIC] = own.model
  objective = build()
  prompts, held_out, counts = prompt_sets(
    experiment, loaded, begun.tokenizer, run_dir, datasets or {}
  )
  check_room(begun.config, experiment.sampling, prompts.width)
  put = _as_it_is if mesh is None else functools.partial(place.place_batch, mesh)
  beside = aux_losses.prepare(
    experiment.parts, begun.tokenizer, run_dir, datasets or {}, put
  )
  if beside.parts:
    counts["parts"] = beside.counts
  counts |= setup.start_digest(experiment, start["lm"])
  if judges := rewards.digests(experiment.feedback.source):
    counts[setup.JUDGES] = judges
  setup.keep_counts(run_dir, counts)
  root = jax.random.key(experiment.seed)
  if adapter is not None:
    start = start | {"lm": trained.init(jax.random.fold_in(root, 3))}
  needed = aux_losses.joined(objective, beside.parts)
  head = heads.init_value_head(begun.config.width)
  params = state.with_heads(needed, start, head)
  if own is not None:
    params[state.CRITIC] = own.params
  first, shardings = _placed(experiment, mesh, trained, own, params, objective, root)
  frozen = {}
  if adapter is None:
    ref = {"lm": jax.tree.map(jnp.copy, first.params["lm"])}
  else:
    frozen[state.BASE] = ref = {"lm": setup.placed(mesh, model, begun.params["lm"])}
  controller = experiment.controller and experiment.controller.build()
  updates = experiment.iterations * experiment.minibatches * experiment.ppo_epochs
  return Run(
    experiment=experiment,
    objective=objective,
    arrangement=arrangement(experiment),
    controller=controller,
    judge=rewards.judge(experiment.feedback) if judge is None else judge,
    model=model,
    tokenizer=begun.tokenizer,
    prompts=prompts,
    held_out=held_out,
    ref=ref,
    frozen=frozen,
    state=OnlineState(
      step=jnp.zeros((), jnp.int32),
      train=first,
      ref=None if experiment.ref_update_every is None else ref,
      sampler=tuple(_copied(first) for _ in range(experiment.sampling.staleness)),
      beta=None if controller is None else jnp.float32(controller.beta),
    ),
    step=step.make_step(
      build,
      models,
      experiment.optimizer,
      updates,
      mesh=mesh,
      shardings=shardings,
      adapter=adapter,
      parts=beside.parts,
    ),
    beside=beside,
    record=recorder(
      models | {"policy": lora.attached_model(model, adapter)},
      recorded(objective, experiment.sampling.temperature),
      mesh,
    ),
    place=put,
    counts=counts,
  )


def _copied(first: state.TrainState) -> Params:
  return jax.tree.map(jnp.copy, first.params)


def roles(run: Run, params: Params) -> dict[str, Params]:
  """What sampling and scoring read of trained parameters; see `state.roles`."""
  return state.roles(params, run.frozen, run.experiment.adapter)


def frozen(run: Run, ref: Params) -> dict[str, Params]:
  """What an update reads beside the trained parameters, the reference of now where the
  objective or a part reads it live."""
  live = references.reads_live(run.objective) or aux_losses.read_reference(
    run.beside.parts
  )
  return dict(run.frozen) | ({references.ROLE: ref} if live else {})


def _placed(experiment, mesh, trained, own, params, objective, root):
  chain = optim.transform(experiment.optimizer, trained.logical_axes())
  ema = experiment.optimizer.ema is not None
  made = (params, chain, objective.init(), jax.random.fold_in(root, 2), ema)
  if mesh is None:
    return state.create(*made), None
  return state.create_on(mesh, trained, *made, critic=own and own.model)


def _as_it_is(batch: Batch) -> Batch:
  return batch


def check_room(config: Config, sampling: Sampling, longest: int) -> None:
  """Refuses what a decoder of this config cannot sample.

  Args:
    config: of the policy.
    sampling: how completions are drawn.
    longest: tokens of the longest prompt.

  Raises:
    ValueError: more positions than it has learned, a top_k above its vocabulary.
  """
  if sampling.top_k is not None and sampling.top_k > config.vocab:
    raise ValueError(
      f"Sampling.top_k is {sampling.top_k}; allowed: 1 to {config.vocab} (the "
      "vocabulary), or None"
    )
  total = longest + sampling.max_completion_tokens
  if config.rotary is None and total > config.positions:
    raise ValueError(
      f"Sampling.max_completion_tokens is {sampling.max_completion_tokens}: after a "
      f"prompt of {longest} "
      f"tokens that is {total}, and the start has {config.positions} learned "
      "positions; lower it, or set Prompts.limits.prompt"
    )


def prompt_sets(
  experiment: OnlineExperiment,
  loaded: Loaded,
  tokenizer: Any,
  run_dir: Path,
  datasets: Datasets,
) -> tuple[PromptSet, PromptSet | None, dict[str, Any]]:
  """The training prompts, the held-out ones, and counts of both."""
  config, held = experiment.prompts, experiment.evaluation
  made, bad = _prompt_set(config, loaded, tokenizer)
  chosen, held_out = made, None
  if held.share:
    sides = split.by_prompt(
      range(len(made.texts)),
      {"train": 1 - held.share, "held_out": held.share},
      config.seed,
      prompt=lambda row: made.texts[row],
    )
    chosen, held_out = (_some(made, sides[name]) for name in ("train", "held_out"))
  elif held.path is not None:
    other = loading.load(dataclasses.replace(held, limit=None), config, datasets)
    held_out, more = _prompt_set(config, other, tokenizer)
    bad += more
  if held_out is not None:
    held_out = _some(held_out, range(len(held_out.ids))[: held.limit])
    width = max(chosen.width, held_out.width)
    chosen, held_out = (x._replace(width=width) for x in (chosen, held_out))
  if bad:
    audit.write_bad_records(bad, run_dir / "bad_rows.jsonl")
  counts = {
    "source": loaded.name,
    "source_sha256": loaded.sha256,
    "rows": len(loaded.records) + len(loaded.bad),
    "dropped": len(bad),
    "prompts": len(chosen.ids),
    "held_out_prompts": 0 if held_out is None else len(held_out.ids),
    "longest_prompt": chosen.width,
  }
  return chosen, held_out, counts


def _prompt_set(config: Prompts, loaded: Loaded, tokenizer):
  first = {split.prompt_text(row): row for row in reversed(loaded.records)}
  rows, bad = list(reversed(first.values())), list(loaded.bad)
  if bad and config.bad_rows == "stop":
    raise records.BadRecords(bad)
  try:
    ids = tokenise.tokenise_prompts(
      rows, tokenizer, config.template, limits=config.limits
    )
  except records.BadRecords as found:
    if config.bad_rows == "stop":
      raise
    bad += found.bad
    wrong = {row.uid for row in found.bad}
    rows = [row for row in rows if row.uid not in wrong]
    ids = tokenise.tokenise_prompts(
      rows, tokenizer, config.template, limits=config.limits
    )
  if not rows:
    raise ValueError(
      f"Prompts.path {config.path!r}: there is no prompt ({len(bad)} rows were "
      "dropped); give at least one"
    )
  texts = tuple(map(split.prompt_text, rows))
  made = PromptSet(
    tuple(row.uid for row in rows), texts, tuple(ids), max(map(len, ids))
  )
  return made, bad


def _some(prompts: PromptSet, rows) -> PromptSet:
  columns = (prompts.uids, prompts.texts, prompts.ids)
  return PromptSet(*(tuple(x[row] for row in rows) for x in columns), prompts.width)


def recorded(objective: Objective, temperature: float) -> tuple[TokenStat, ...]:
  """What is scored once an iteration: the reference's statistics, and the values of
  the policy that sampled."""
  stats = {stat.field: stat for stat in references.cacheable(objective)}
  ref_logp = token_stats.tempered(token_stats.REF_LOGP, temperature)
  stats.setdefault(ref_logp.field, ref_logp)  # the run's KL, whatever the objective
  if OLD_VALUE in objective.columns:
    field = token_stats.VALUE.field
    (value,) = (stat for stat in objective.stats if stat.field == field)
    stats[OLD_VALUE] = value._replace(field=OLD_VALUE)
  return tuple(stats[field] for field in sorted(stats))


def recorder(
  models: Mapping[str, Model],
  stats: tuple[TokenStat, ...],
  mesh: jax.sharding.Mesh | None,
) -> Callable[[Mapping[str, Params], Batch], dict[str, jax.Array]]:
  """The jitted `(role -> params, batch) -> {field: [M, B, K, T]}`, without gradient."""

  def one(roles: Mapping[str, Params], microbatch: Batch) -> dict[str, jax.Array]:
    record = score(models, roles, stats, microbatch, mesh=mesh)
    fields = vars(record) | dict(record.extra)
    return {stat.field: fields[stat.field] for stat in stats}

  return jax.jit(lambda roles, batch: jax.lax.map(lambda b: one(roles, b), batch))


def row_shape(run: Run, longest: int, completions: int, rows: int = 1) -> Shape:
  """The sizes of a batch of rollouts: a prompt group a row, one of few row lengths.

  Row lengths are quarters of the longest possible row, so that short completions are
  not padded to the limit, and at most four programs are compiled.

  Args:
    run: the run.
    longest: tokens of the longest group.
    completions: of a group.
    rows: that a prompt makes at most.
  """
  most_tokens = run.experiment.sampling.max_completion_tokens
  responses = completions * most_tokens
  most = run.prompts.width + responses
  quarter = -(-most // _BUCKETS)
  length = -(-longest // quarter) * quarter
  groups = rows * run.experiment.rows_per_step // run.experiment.microbatches
  return Shape(length, groups, completions, most_tokens, min(responses, length))
