"""Samples, writes and reads rollouts, with what is recorded at sampling time.

A rollout is a function of the run's key, the iteration and the row, never of the
batches of sampling. Rollouts are written as JSON lines, one a completion, and read back
bit for bit: a run that is killed after its feedback does not ask the judge again.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xpo_jax.config.sampling import Sampling
from xpo_jax.data import records, sealed_files
from xpo_jax.data.records import Conversation, PromptText, Turn, columns_of
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback.teacher import Teacher
from xpo_jax.models import generate, lora
from xpo_jax.models.generation_config import GenerationConfig, Mixture
from xpo_jax.models.lora import Adapter
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import distributed, place
from xpo_jax.sharding import mesh as meshes
from xpo_jax.train.loading import PromptSet
from xpo_jax.types import Array, Layout, Params


@dataclasses.dataclass(frozen=True, eq=False)
class RolloutBatch:
  """Rollouts of one iteration: B prompts with K completions each.

  Attributes:
    iteration: of the run, from 0; -1 for held-out prompts.
    row_B: index of each prompt in the prompt set.
    prompts: their texts.
    texts_BK: the completions' texts, special tokens left out; a `records.Cut` where no
      stop token ended one.
    examples: prompts and completions in tokens, layout SAMPLED, without fields.
    logp: for each prompt and completion, float32 log-probs of its tokens under the
      policy that sampled it, at the sampling temperature, before any truncation.
    sampler_logp: the same under the distribution that it was drawn from, after
      truncation and at the sampler's own temperature; that of `logp` in a greedy column
      0. () in files of older versions.
    ended_BK: False where a completion was cut at the limit.
    reward_BK: rewards by the feedback, NaN where it abstained; None before feedback.
    reward_parts: what the rewards are made of, by name, [B, K] each; {} for nothing.
    opponents_BJ: texts that the completions are compared with, or ().
    idle: fraction of the sampler's decode slots times steps that were idle, opponents
      included.
  """

  iteration: int
  row_B: np.ndarray
  prompts: tuple[str, ...]
  texts_BK: tuple[tuple[str, ...], ...]
  examples: tuple[Example, ...]
  logp: tuple[tuple[np.ndarray, ...], ...]
  ended_BK: np.ndarray
  sampler_logp: tuple[tuple[np.ndarray, ...], ...] = ()
  reward_BK: np.ndarray | None = None
  reward_parts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  opponents_BJ: tuple[tuple[str, ...], ...] = ()
  idle: float = 0.0

  @property
  def length_BK(self) -> np.ndarray:
    """Tokens of each completion, EOS included where it ended."""
    return np.array([[len(y) for y in e.completions] for e in self.examples])


class SamplerParams(NamedTuple):
  """Decoders to sample from, the "lm" parameters, and where they are.

  Attributes:
    policy: the policy that samples.
    ref: the reference, where column 0 or an opponent is sampled from it.
    average: the averaged policy, where an opponent is sampled from it.
    teacher: the teacher, where completions are sampled from a mixture with it.
    adapter: what is attached to `policy` and `average`, or None.
    mesh: devices that prompts are split over, by data and fsdp, the parameters by their
      logical axes and the caches by rows and heads; None: one device. Parameters may be
      on the same devices as another mesh.
  """

  policy: Params
  ref: Params | None = None
  average: Params | None = None
  teacher: Teacher | None = None
  adapter: Adapter | None = None
  mesh: Mesh | None = None


def draw(
  model: Model,
  params: SamplerParams,
  prompts: PromptSet,
  row_B: np.ndarray,
  sampling: Sampling,
  tokenizer: Any,
  *,
  iteration: int,
  key: Array,
) -> RolloutBatch:
  """Samples completions.

  Args:
    model: of policy and reference.
    params: decoders to sample from.
    prompts: the prompt set.
    row_B: indices of prompts; one may occur twice, its completions then differ.
    sampling: of the run.
    tokenizer: decodes; its EOS ends a completion.
    iteration: of the rollouts.
    key: of these rollouts; position b is a function of it and b alone.

  Returns:
    Rollouts without rewards.
  """
  ids = [prompts.ids[row] for row in row_B]
  groups = _groups(model, params, sampling, key)
  groups = _ready(groups, sampling.weights_dtype, params.mesh)
  batch_size, slots = (
    None if size is None else meshes.padded_rows(params.mesh, size)
    for size in (sampling.prompts_at_once, sampling.slots)
  )
  batching = generate.Batching(batch_size, slots, prompts.width, params.mesh)
  drawn = [
    generate.generate(
      group.model,
      group.params,
      ids,
      tokenizer=tokenizer,
      config=group.config,
      key=group.key,
      batching=batching,
    )
    for group in groups
  ]
  slot_steps = sum(group.slot_steps for group in drawn)
  used = sum(np.maximum(group.length_BK - 1, 0).sum() for group in drawn)
  opponents_BJ = ()
  if sampling.opponent is not None:
    opponents_BJ = drawn.pop().texts_BK
  sampled = [
    (group, group.logp_BKT if settings.config.greedy else group.sampler_logp_BKT)
    for group, settings in zip(drawn, groups, strict=False)
  ]
  completions = _columns([group.unpadded(group.tokens_BKT) for group in drawn])
  return RolloutBatch(
    iteration=iteration,
    row_B=np.asarray(row_B),
    prompts=tuple(prompts.texts[row] for row in row_B),
    texts_BK=_columns([group.texts_BK for group in drawn]),
    examples=tuple(
      Example(prompts.uids[row], x, ys, Layout.SAMPLED)
      for row, x, ys in zip(row_B, ids, completions, strict=True)
    ),
    logp=_columns([group.unpadded(group.logp_BKT) for group in drawn]),
    ended_BK=np.concatenate([group.ended_BK for group in drawn], axis=1),
    sampler_logp=_columns([group.unpadded(logp_BKT) for group, logp_BKT in sampled]),
    opponents_BJ=opponents_BJ,
    idle=1 - float(used / slot_steps) if slot_steps else 0.0,
  )


class _Group(NamedTuple):
  """Columns that are sampled with the same settings."""

  model: Model
  params: Params
  key: Array
  config: GenerationConfig


def dtype_of(x: Array, dtype: str) -> np.dtype:
  """The dtype of a parameter in a sampler with `Sampling.weights_dtype`: codes of
  weights in 4 bits stay as they are."""
  return jnp.dtype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype


def _ready(groups: list[_Group], dtype: str | None, mesh: Mesh | None) -> list[_Group]:
  """The groups with the parameters that they read in a dtype, and on the mesh."""
  ready: dict[int, Params] = {}  # of groups that share parameters, once

  def made(model: Model, params: Params) -> Params:
    if id(params) not in ready:
      tree = params
      if dtype is not None:
        tree = jax.tree.map(lambda x: x.astype(dtype_of(x, dtype)), tree)
      if mesh is not None:
        tree = place.place_params(mesh, tree, model.logical_axes())
      ready[id(params)] = tree
    return ready[id(params)]

  def of_group(group: _Group) -> _Group:
    config, mixture = group.config, group.config.mixture
    if mixture is not None:
      other = mixture._replace(params=made(mixture.model, mixture.params))
      config = dataclasses.replace(config, mixture=other)
    return group._replace(params=made(group.model, group.params), config=config)

  return list(map(of_group, groups))


def _groups(
  model: Model, sampler_params: SamplerParams, sampling: Sampling, key: Array
) -> list[_Group]:
  """The columns of K in their order, then those of the opponent."""
  params, ref_params, average, teacher, adapter, _ = sampler_params
  policy = lora.attached_model(model, adapter)
  own_key, column0_key, opponent_key, exploration_key = jax.random.split(key, 4)
  config = GenerationConfig(
    sampling.max_completion_tokens,
    temperature=sampling.temperature,
    top_k=sampling.top_k,
    top_p=sampling.top_p,
  )
  greedy_config = dataclasses.replace(config, greedy=True, top_k=None, top_p=None)
  column0 = {
    "sample": [],
    "greedy": [_Group(policy, params, column0_key, greedy_config)],
    "reference": [_Group(model, ref_params, column0_key, config)],
  }[sampling.column0_source]
  columns = sampling.own
  own_config = dataclasses.replace(config, completions=columns.stop - columns.start)
  if sampling.teacher_share:
    other = Mixture(
      teacher.model, teacher.params["lm"], sampling.teacher_share, arithmetic=True
    )
    own_config = dataclasses.replace(own_config, mixture=other)
  own = _Group(policy, params, own_key, own_config)
  explorers = []
  if sampling.exploration_temperature is not None:
    exploration_config = dataclasses.replace(
      config,
      completions=sampling.completions // 2,
      exploration_temperature=sampling.exploration_temperature,
    )
    explorers = [_Group(policy, params, exploration_key, exploration_config)]
  rivals, opponent = [], sampling.opponent
  if opponent is not None:
    base = policy, params if opponent.of == "sampler" else average
    # A single model at the ends.
    ends, mixture = {0.0: base, 1.0: (model, ref_params)}, None
    if opponent.share not in ends:
      mixture = Mixture(model, ref_params, opponent.share)
    source = ends.get(opponent.share, base)
    rival_config = dataclasses.replace(
      config, completions=opponent.completions, mixture=mixture
    )
    rivals = [_Group(*source, opponent_key, rival_config)]
  return [*column0, own, *explorers, *rivals]


def _columns(groups: Sequence[tuple[tuple, ...]]) -> tuple[tuple, ...]:
  """Concatenates the completions of the groups, prompt by prompt."""
  return tuple(
    tuple(itertools.chain(*of_prompt)) for of_prompt in zip(*groups, strict=True)
  )


def joined(first: RolloutBatch, second: RolloutBatch) -> RolloutBatch:
  """Appends the prompts of a second round of the same iteration, both with rewards;
  `idle` is the mean over prompts."""
  counts = [len(first.row_B), len(second.row_B)]
  return dataclasses.replace(
    first,
    row_B=np.concatenate([first.row_B, second.row_B]),
    prompts=first.prompts + second.prompts,
    texts_BK=first.texts_BK + second.texts_BK,
    examples=first.examples + second.examples,
    logp=first.logp + second.logp,
    sampler_logp=first.sampler_logp + second.sampler_logp,
    ended_BK=np.concatenate([first.ended_BK, second.ended_BK]),
    reward_BK=np.concatenate([first.reward_BK, second.reward_BK]),
    reward_parts={
      name: np.concatenate([part_BK, second.reward_parts[name]])
      for name, part_BK in first.reward_parts.items()
    },
    opponents_BJ=first.opponents_BJ + second.opponents_BJ,
    idle=float(np.average([first.idle, second.idle], weights=counts)),
  )


def write(path: Path, rollouts: RolloutBatch) -> None:
  """Writes rollouts atomically, one line for each completion."""
  distributed.on_first(lambda: _write(path, rollouts))


def written(path: Path) -> RolloutBatch | None:
  """Reads rollouts of a file; None where it was not written yet."""
  exists = distributed.on_first(path.exists)
  return distributed.together(lambda: read(path)) if exists else None


def _write(path: Path, rollouts: RolloutBatch) -> None:
  lines = []
  for b, example in enumerate(rollouts.examples):
    for k, tokens in enumerate(example.completions):
      reward = None if rollouts.reward_BK is None else float(rollouts.reward_BK[b, k])
      line = {
        "iteration": rollouts.iteration,
        "row": int(rollouts.row_B[b]),
        "column": k,
        "uid": example.uid,
        "prompt": rollouts.prompts[b],
        "completion": rollouts.texts_BK[b][k],
        "reward": None if reward is None or np.isnan(reward) else reward,
        "ended": bool(rollouts.ended_BK[b, k]),
        "tokens": tokens.tolist(),
        "logp": rollouts.logp[b][k].tolist(),
      }
      if rollouts.sampler_logp:
        line |= {"sampler_logp": rollouts.sampler_logp[b][k].tolist()}
      if rollouts.reward_parts:
        parts = {name: float(x[b, k]) for name, x in rollouts.reward_parts.items()}
        line["reward_parts"] = {n: None if np.isnan(x) else x for n, x in parts.items()}
      if k == 0:  # once a prompt
        line |= {"prompt_tokens": example.prompt.tolist(), "idle": rollouts.idle}
        if isinstance(rollouts.prompts[b], Conversation):
          line |= {"conversation": _messages(rollouts.prompts[b])}
        if columns := columns_of(rollouts.prompts[b]):
          line |= {"columns": dict(columns)}
        if rollouts.opponents_BJ:
          line |= {"opponents": list(rollouts.opponents_BJ[b])}
      lines.append(line)
  path.parent.mkdir(parents=True, exist_ok=True)
  sealed_files.write_lines(path, lines)


def read(path: Path) -> RolloutBatch:
  """Reads rollouts; a reward that is null is NaN.

  Raises:
    ValueError: the file is damaged.
  """
  lines = sealed_files.read_lines(path)
  groups: list[list[dict]] = []
  for line in lines:
    if line["column"] == 0:
      groups.append([])
    groups[-1].append(line)

  def completion(line: dict[str, Any]) -> str:
    text = line["completion"]
    return text if line["ended"] else records.Cut(text)

  def of(name: str, dtype: Any = None) -> list[list]:
    cast = (lambda x: x) if dtype is None else (lambda x: np.array(x, dtype))
    return [[cast(line[name]) for line in group] for group in groups]

  return RolloutBatch(
    iteration=lines[0]["iteration"],
    row_B=np.array([group[0]["row"] for group in groups]),
    prompts=tuple(map(_prompt, groups)),
    texts_BK=tuple(tuple(map(completion, group)) for group in groups),
    examples=tuple(
      Example(
        group[0]["uid"],
        np.array(group[0]["prompt_tokens"], np.int32),
        tuple(ys),
        Layout.SAMPLED,
      )
      for group, ys in zip(groups, of("tokens", np.int32), strict=True)
    ),
    logp=tuple(map(tuple, of("logp", np.float32))),
    sampler_logp=tuple(
      tuple(np.array(line["sampler_logp"], np.float32) for line in group)
      for group in groups
      if "sampler_logp" in group[0]
    ),
    ended_BK=np.array(of("ended"), bool),
    reward_BK=np.array(of("reward"), np.float32),  # None becomes NaN
    reward_parts={
      name: np.array([[line["reward_parts"][name] for line in g] for g in groups], "f4")
      for name in lines[0].get("reward_parts", {})
    },
    opponents_BJ=tuple(
      tuple(group[0]["opponents"]) for group in groups if "opponents" in group[0]
    ),
    idle=lines[0]["idle"],
  )


def _messages(prompt: Conversation) -> dict[str, Any]:
  turns = [dataclasses.asdict(turn) for turn in prompt.turns]
  return {"turns": turns, "template_arguments": prompt.template_arguments}


def _prompt(group: list[dict[str, Any]]) -> str:
  """The prompt of the lines of a group."""
  line = group[0]
  columns = line.get("columns", {})
  if "conversation" not in line:
    return PromptText(line["prompt"], columns) if columns else line["prompt"]
  turns = tuple(Turn(**turn) for turn in line["conversation"]["turns"])
  return Conversation(turns, line["conversation"]["template_arguments"], columns)


def order(prompts: int, seed: int, start: int, count: int) -> np.ndarray:
  """Indices of `count` prompts from position `start` of an endless sequence of shuffled
  passes over all prompts."""
  rows = []
  for position in range(start, start + count):
    epoch, within = divmod(position, prompts)
    if within == 0 or not rows:
      pass_ = np.random.default_rng((seed, epoch)).permutation(prompts)
    rows.append(int(pass_[within]))
  return np.array(rows)


def flat(arrays: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """Concatenates arrays per completion, in the order of `data.token_store`."""
  return np.concatenate([array for group in arrays for array in group])
