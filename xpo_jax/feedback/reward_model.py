"""Scores texts with saved reward models: explicit, implicit and ensembles.

A reward model is a Hugging Face directory with a file reward.json: the template and
limits that it was trained with, and the gain and bias that normalise it. So is what
`export` makes of one for others, a `*ForSequenceClassification` of one label; such a
directory without reward.json, of others, is read over the rendering of its chat
template, as transformers reads it. A reward is
gain * value + bias; the value is that of training, the scalar head at the last token of
the completion, which it has read: EOS where the completion ended, else the token at
which it was cut.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.data import audit, sealed_files
from xpo_jax.data.records import Text
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Example, Limits
from xpo_jax.feedback import tokenised_texts
from xpo_jax.feedback.protocol import Scorer, Scores
from xpo_jax.models import (
  heads,
  hf_checkpoint,
  score,
  transformer,
  weights_source,
)
from xpo_jax.ops import kl_control, token_stats
from xpo_jax.ops.kl_control import Affine
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import place, rules
from xpo_jax.types import Array, Params

FILE = "reward.json"
REWARD, PREFERENCE = "reward", "preference"
READ_AT = "last token"  # where the head is read; `read_at` of reward.json
Normaliser = Callable[[Array, Array], Affine]


class RewardModel(NamedTuple):
  """A decoder with a scalar head, its tokenizer and its text format.

  Attributes:
    model: the decoder.
    params: `{"lm": ..., "value": ...}`, on the mesh if there is one.
    tokenizer: the reward model's own; it may differ from the policy's.
    template: combines a prompt and a completion.
    limits: maximum lengths; longer texts are truncated as in training.
    kind: `REWARD`, or `PREFERENCE` for a model of two completions.
    affine: maps the head's value to the reward.
    mesh: over which rows are split, or None.
    as_chat: whether texts are read as by transformers, over the whole rendering of the
      chat template, without the template and limits above.
  """

  model: transformer.Model
  params: Params
  tokenizer: Any
  template: Template
  limits: Limits
  kind: str = REWARD
  affine: Affine = Affine(1.0, 0.0)
  mesh: jax.sharding.Mesh | None = None
  as_chat: bool = False


def write_description(
  directory: str | Path,
  template: Template,
  limits: Limits,
  *,
  kind: str = REWARD,
  affine: Affine = Affine(1.0, 0.0),
) -> Path:
  """Writes reward.json into a model's directory; overwrites an existing one.

  Args:
    directory: a Hugging Face directory with a scalar head
      (`models.hf_checkpoint.save`, or a `*ForSequenceClassification` of others).
    template: of training.
    limits: of training.
    kind: `REWARD` or `PREFERENCE`.
    affine: maps the head's value to the reward.

  Raises:
    ValueError: a gain or bias that is not finite.
  """
  numbers = {"gain": float(affine.gain), "bias": float(affine.bias)}
  if not np.isfinite(list(numbers.values())).all():
    raise ValueError(f"reward model {directory}: {numbers}; both must be finite")
  content = {
    "kind": kind,
    "read_at": READ_AT,
    "template": dataclasses.asdict(template),
    "limits": dataclasses.asdict(limits),
    **numbers,
  }
  path = Path(directory) / FILE
  path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
  return path


def read_description(directory: str | Path, kind: str = REWARD) -> dict[str, Any]:
  """Reads reward.json of a directory; reads no weights.

  Args:
    directory: see `load`.
    kind: the expected kind.

  Returns:
    Its content; of a `*ForSequenceClassification` without one that of a model that is
    read as by transformers (`as_chat`).

  Raises:
    ValueError: neither reward.json nor such a class, a model of the other kind, or one
      that was trained with its head read at another position.
  """
  directory = weights_source.directory(directory)
  path = directory / FILE
  if path.exists():
    description = sealed_files.read_json(path)
  elif (directory / "config.json").exists() and hf_checkpoint.is_classifier(directory):
    description = _OF_OTHERS
  else:
    raise ValueError(
      f"{directory} is not a reward model: it has no {FILE}, and is no "
      "*ForSequenceClassification of transformers; a finished reward-model run has the "
      "file in policy/, reward_model.write_description writes it into any directory"
    )
  if description.get("kind") != kind:
    raise ValueError(
      f"{directory} has a {description.get('kind')} model, a {kind} model is needed; "
      "load a reward model by reward_model.scorer, a preference model by "
      "preference_model.preference"
    )
  _check_read_at(path, description)
  return description


_OF_OTHERS = {
  "kind": REWARD,
  "read_at": READ_AT,
  "template": dataclasses.asdict(Template()),
  "limits": dataclasses.asdict(Limits()),
  "gain": 1.0,
  "bias": 0.0,
  "as_chat": True,
}


def _check_read_at(path: Path, description: Mapping[str, Any]) -> None:
  read_at = description.get("read_at")
  if read_at != READ_AT:
    raise ValueError(
      f"{path}: read_at is {read_at}, it must be {READ_AT!r}: the head was trained at "
      "the position that predicts the last token, and would be read where it was not "
      "trained; train the model again"
    )


def load(
  directory: str | Path,
  *,
  kind: str = REWARD,
  compute_dtype: str = "float32",
  mesh: jax.sharding.Mesh | None = None,
) -> RewardModel:
  """Loads a reward or preference model; checks everything before it reads weights.

  Args:
    directory: a Hugging Face directory with value_head.safetensors and reward.json, or
      a `*ForSequenceClassification` of one label; or what stands for it
      (`models.weights_source`).
    kind: the expected kind, `REWARD` or `PREFERENCE`.
    compute_dtype: dtype of activations.
    mesh: over which parameters and rows are split; None: one device.

  Raises:
    ValueError: what `read_description` refuses; no scalar head or no tokenizer; sizes
      that the mesh does not divide; and as `hf_checkpoint.load`.
  """
  directory = weights_source.directory(directory)
  description = read_description(directory, kind)
  loaded = load_raw(
    directory,
    Template(**description["template"]),
    Limits(**description["limits"]),
    compute_dtype=compute_dtype,
    mesh=mesh,
  )
  affine = Affine(description["gain"], description["bias"])
  as_chat = description.get("as_chat", False)
  if as_chat and loaded.tokenizer.chat_template is None:
    raise ValueError(
      f"{directory}: its tokenizer has no chat template, so how the model reads a "
      f"prompt and a completion is not known; write it into {FILE} by "
      "reward_model.write_description"
    )
  return loaded._replace(kind=kind, affine=affine, as_chat=as_chat)


def load_raw(
  directory: str | Path,
  template: Template,
  limits: Limits,
  *,
  compute_dtype: str = "float32",
  mesh: jax.sharding.Mesh | None = None,
) -> RewardModel:
  """Loads a model with a given template and limits, and no gain and bias.

  Args:
    directory: see `load`.
    template: combines a prompt and a completion.
    limits: maximum lengths.
    compute_dtype: see `load`.
    mesh: see `load`.

  Raises:
    ValueError: as `load`, but a directory without reward.json is taken.
  """
  directory = weights_source.directory(directory)
  if (directory / FILE).exists():
    _check_read_at(directory / FILE, sealed_files.read_json(directory / FILE))
  if hf_checkpoint.is_classifier(directory):
    checkpoint = hf_checkpoint.load_classifier(directory, compute_dtype)
  else:
    checkpoint = hf_checkpoint.load(directory, compute_dtype)
  if "value" not in checkpoint.params:
    raise ValueError(
      f"{directory} has no scalar head; name the directory of a reward model, not of a "
      "policy"
    )
  if checkpoint.tokenizer is None:
    raise ValueError(
      f"{directory} has no tokenizer; save one in the directory of the weights"
    )
  model = transformer.model(checkpoint.config)
  try:
    params = _place(model, checkpoint.params, mesh)
  except ValueError as error:
    raise ValueError(f"reward model {directory}: {error}") from None
  return RewardModel(model, params, checkpoint.tokenizer, template, limits, mesh=mesh)


def to_scorer(reward_model: RewardModel, *, batch: int = 32) -> Scorer:
  """Converts a reward model in memory to a Scorer.

  Args:
    reward_model: of kind `REWARD`.
    batch: texts per forward pass.

  Returns:
    A Scorer that never abstains and raises on a reward that is not finite.
  """

  def scorer(prompts: Sequence[str], completions: Sequence[Text]) -> Scores:
    value_N = head_values(
      reward_model, _examples(reward_model, prompts, completions), batch
    )
    return Scores(np.asarray(reward_model.affine.of(value_N), np.float32))

  return scorer


def _examples(reward_model, prompts, completions) -> list[Example]:
  tokenizer = reward_model.tokenizer
  if reward_model.as_chat:
    return tokenised_texts.to_chat_examples(prompts, completions, tokenizer)
  return tokenised_texts.to_examples(
    prompts,
    completions,
    tokenizer,
    template=reward_model.template,
    limits=reward_model.limits,
  )


def export(directory: str | Path, target: str | Path) -> float:
  """Writes a reward model as a `*ForSequenceClassification` of one label.

  transformers and what is built on it read its rewards, the gain included. The class
  has no bias: the constant stays in reward.json, and orders no completions. The
  tokenizer's chat template ends a text as training did, with EOS, and its padding is a
  token other than EOS.

  Args:
    directory: see `load`.
    target: a new directory.

  Returns:
    What a reward of ours has more than the score that others read.

  Raises:
    ValueError: a directory of others; as `load` and `hf_checkpoint.save_classifier`.
  """
  held = load(directory)
  if held.as_chat:
    raise ValueError(f"{directory} is what transformers reads already; copy it")
  gain, bias = (np.float32(x) for x in held.affine)
  head = {name: np.asarray(leaf) for name, leaf in held.params["value"].items()}
  constant = float(gain * head["bias"] + bias)
  value = {"kernel_D": gain * head["kernel_D"], "bias": np.float32(0)}
  params = {"lm": held.params["lm"], "value": value}
  tokenizer = _for_others(held.tokenizer)
  hf_checkpoint.save_classifier(target, held.model.config, params, tokenizer=tokenizer)
  affine = Affine(1.0, constant)
  write_description(target, held.template, held.limits, affine=affine)
  return constant


# Around a chat template: a text ends as in training. "+" keeps whitespace.
_RENDERED = "{% set rendered +%}"
_ENDED = (
  "{%+ endset %}{{ rendered if add_generation_prompt else rendered.rstrip() + "
  "('' if rendered.rstrip().endswith(eos_token) else eos_token) }}"
)


def _for_others(tokenizer: Any) -> Any:
  """A tokenizer whose template ends texts as training did, and whose padding is a
  token of its own where it has one."""
  tokenizer = copy.deepcopy(tokenizer)
  template = tokenizer.chat_template
  if isinstance(template, str) and not template.endswith(_ENDED):
    # Jinja leaves out the last line's end of a template.
    tokenizer.chat_template = _RENDERED + template.removesuffix("\n") + _ENDED
  if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
    added = tokenizer.added_tokens_decoder.values()
    special = [
      x.content for x in added if x.special and x.content != tokenizer.eos_token
    ]
    if special:
      named = [token for token in special if "pad" in token.lower()]
      tokenizer.pad_token = (named or special)[0]
  return tokenizer


def scorer(
  directory: str,
  *,
  batch: int = 32,
  compute_dtype: str = "float32",
  mesh: jax.sharding.Mesh | None = None,
) -> Scorer:
  """Loads a saved reward model as a Scorer."""
  return to_scorer(load(directory, compute_dtype=compute_dtype, mesh=mesh), batch=batch)


def sharded_scorer(
  directory: str,
  *,
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  batch: int = 32,
  compute_dtype: str = "float32",
) -> Scorer:
  """Loads a Scorer as `scorer`, on a mesh of all devices of this process.

  Of several processes each has a copy, and scores a part of the texts.

  Args:
    directory: see `load`.
    data: number of copies of the model.
    fsdp: number of devices that split rows and parameters.
    tensor: number of devices that split heads, MLP and vocabulary.
    batch: texts per forward pass, over all devices.
    compute_dtype: dtype of activations.

  Raises:
    ValueError: the mesh does not cover all devices, or does not divide the batch or
      the model's sizes; see `load`.
  """
  mesh = meshes.make_mesh(data, fsdp, tensor, jax.local_devices())
  meshes.check_batch(mesh, batch)
  return scorer(directory, batch=batch, compute_dtype=compute_dtype, mesh=mesh)


def normalise(
  reward_model: RewardModel,
  prompts: Sequence[str],
  completions: Sequence[Text],
  *,
  rule: Normaliser = kl_control.standardising,
) -> RewardModel:
  """Returns the model with gain and bias estimated on reference samples.

  Args:
    reward_model: the model; its present gain and bias are ignored.
    prompts: of the samples.
    completions: samples of the reference policy (Ziegler et al. 2019, arXiv:1909.08593:
      mean 0, deviation 1), or human demonstrations with
      `rule=kl_control.centring` (InstructGPT, arXiv:2203.02155: mean 0).
    rule: `(reward_BK, population_BK) -> Affine`.

  Raises:
    ValueError: fewer than two samples.
  """
  if len(completions) < 2:
    raise ValueError(
      f"completions: {len(completions)} reference samples; give at least 2, better 256"
    )
  unscaled = reward_model._replace(affine=Affine(1.0, 0.0))
  raw = to_scorer(unscaled)(prompts, completions)
  reward_BK = jnp.asarray(raw.value_N)[:, None]
  affine = rule(reward_BK, jnp.ones_like(reward_BK))
  affine = Affine(float(affine.gain), float(affine.bias))
  return reward_model._replace(affine=affine)


def ensemble_mean(scorers: Sequence[Scorer]) -> Scorer:
  """Averages an ensemble, whose members should be normalised on the same samples."""
  return _ensemble(scorers, functools.partial(np.mean, axis=0))


def ensemble_min(scorers: Sequence[Scorer]) -> Scorer:
  """Takes an ensemble's minimum: conservative where its members disagree.

  Paper: Coste et al. 2023, "Reward model ensembles help mitigate overoptimization",
  arXiv:2310.02743.
  """
  return _ensemble(scorers, functools.partial(np.min, axis=0))


def implicit_scorer(
  policy: str,
  reference: str,
  *,
  beta: float = 0.1,
  before: str = "",
  between: str = "",
  prompt_tokens: int | None = None,
  completion_tokens: int | None = None,
  batch: int = 32,
  compute_dtype: str = "float32",
  mesh: jax.sharding.Mesh | None = None,
) -> Scorer:
  """Scores by DPO's implicit reward, beta log(policy / reference) of the completion.

  Only differences between completions of one prompt are meaningful (Rafailov et al.
  2023, arXiv:2305.18290: beta log Z of the prompt is omitted).

  Args:
    policy: a Hugging Face directory.
    reference: another, with the same tokenizer.
    beta: tie to the reference in the policy's training, per nat; > 0.
    before: prefix of a prompt; see `data.render.Template`.
    between: separator of a prompt and its completion.
    prompt_tokens: longer prompts are truncated at their start; None: no limit.
    completion_tokens: longer completions are truncated at their end; None: no limit.
    batch: texts per forward pass.
    compute_dtype: dtype of activations.
    mesh: over which parameters and rows are split; None: one device.

  Raises:
    ValueError: beta <= 0, no tokenizer, or two different tokenizers.
  """
  if beta <= 0:
    raise ValueError(f"implicit_scorer: beta={beta} must be > 0")
  checkpoints = [
    hf_checkpoint.load(directory, compute_dtype) for directory in (policy, reference)
  ]
  tokenizer = checkpoints[0].tokenizer
  if any(checkpoint.tokenizer is None for checkpoint in checkpoints):
    raise ValueError(
      f"{policy} or {reference} has no tokenizer; save one in the directory of the "
      "weights"
    )
  digests = {audit.tokenizer_digest(each.tokenizer) for each in checkpoints}
  if len(digests) > 1:
    raise ValueError(
      f"{policy} and {reference} have different tokenizers, so their log-probs are of "
      "different tokens; use a reference with the policy's tokenizer"
    )
  template = Template(before, between)
  limits = Limits(prompt_tokens, completion_tokens, "truncate")
  models = [transformer.model(each.config) for each in checkpoints]
  params = [
    _place(model, {"lm": checkpoint.params["lm"]}, mesh)
    for model, checkpoint in zip(models, checkpoints, strict=True)
  ]

  def scorer(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    examples = tokenised_texts.to_examples(
      prompts, completions, tokenizer, template=template, limits=limits
    )
    logp, ref_logp = (
      _run(_logps, model, tree, examples, batch, mesh)
      for model, tree in zip(models, params, strict=True)
    )
    return Scores(np.asarray(beta * (logp - ref_logp), np.float32))

  return scorer


def head_values(
  reward_model: RewardModel, examples: Sequence[Any], batch: int
) -> np.ndarray:
  """Computes the head's values at the last token of each example, `[N]`.

  Args:
    reward_model: the model.
    examples: examples of one completion, see `tokenised_texts.to_examples`.
    batch: texts per forward pass.

  Raises:
    ValueError: a value that is not finite; a text with more tokens than the model has
      positions.
  """
  limit = reward_model.model.config.position_limit
  longest = max((example.tokens for example in examples), default=0)
  if limit is not None and longest > limit:
    raise ValueError(
      f"a text has {longest} tokens, the reward model {limit} positions; limit the "
      "prompts and completions"
    )
  return _run(
    _values,
    reward_model.model,
    reward_model.params,
    examples,
    batch,
    reward_model.mesh,
  )


def _ensemble(
  scorers: Sequence[Scorer], rule: Callable[[np.ndarray], np.ndarray]
) -> Scorer:
  if not scorers:
    raise ValueError("scorers: empty; an ensemble needs at least one")

  def ensemble(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    values = [scorer(prompts, completions).value_N for scorer in scorers]
    # NaN where a member abstained.
    return Scores(np.asarray(rule(np.stack(values)), np.float32))

  return ensemble


def _place(
  model: transformer.Model, params: Params, mesh: jax.sharding.Mesh | None
) -> Params:
  if mesh is None:
    return jax.device_put(params)
  axes = {"lm": model.logical_axes(), "value": heads.logical_axes()}
  return place.place_params(mesh, params, {name: axes[name] for name in params})


def _run(function, model, params, examples, batch, mesh) -> np.ndarray:
  if mesh is not None:
    meshes.check_batch(mesh, batch)
  value_N = tokenised_texts.map_batches(
    examples, batch, functools.partial(function, model, mesh, params)
  )
  if not np.isfinite(value_N).all():
    index = int((~np.isfinite(value_N)).argmax())
    raise ValueError(
      f"the reward of text {index} is {value_N[index]}; it must be finite: the weights "
      "have diverged, or compute_dtype is too narrow"
    )
  return value_N


def _hidden(model, mesh, params, rows) -> tuple[Params, Array]:
  lm = params["lm"]
  if mesh is not None:
    lm = rules.gather_tables(mesh, lm, model.logical_axes())
  packed = transformer.Rows.plain(rows.tokens_RL, rows.mask_RL)
  hidden_RLD, _ = transformer.states(model, lm, packed, mesh)
  return lm, rules.pin(mesh, hidden_RLD, meshes.ROWS)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _values(model, mesh, params, rows) -> Array:
  _, hidden_RLD = _hidden(model, mesh, params, rows)
  at_R11 = (rows.length_R - 1)[:, None, None]
  last_RD = jnp.take_along_axis(hidden_RLD, at_R11, axis=1)[:, 0]
  return heads.value(params["value"], last_RD)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logps(model, mesh, params, rows) -> Array:
  lm, hidden_RLD = _hidden(model, mesh, params, rows)
  stats = score.token_statistics(
    {"policy": hidden_RLD[:, :-1]},
    {"policy": model.head(lm)},
    rows.tokens_RL[:, 1:],
    (token_stats.LOGP,),
    softcaps={"policy": model.softcap},
    mesh=mesh,
  )
  return jnp.where(rows.response_RL[:, 1:], stats["logp_BKT"], 0).sum(1)
