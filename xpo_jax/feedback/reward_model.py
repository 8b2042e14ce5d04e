"""Rewards of texts from saved models: explicit, implicit, ensembles of them.

What a reward model needs beside its Hugging Face directory stands there in reward.json:
the template and limits that it was trained with, and the gain and bias that normalise
it. A reward is gain * value + bias, the value read where training reads it: the scalar
head at the position that predicts the last token of the completion.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.data import audit
from xpo_jax.data.tokenise import Limits, Template
from xpo_jax.feedback import _texts
from xpo_jax.feedback.protocol import Scorer, Scores
from xpo_jax.models import heads, hf_checkpoint, score, transformer
from xpo_jax.ops import kl_control, token_stats
from xpo_jax.ops.kl_control import Affine
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import place, rules
from xpo_jax.types import Array, Params

FILE = "reward.json"
REWARD, PREFERENCE = "reward", "preference"
Normaliser = Callable[[Array, Array], Affine]


class RewardModel(NamedTuple):
  """A scalar head on a decoder, ready to read texts.

  Attributes:
    model: the decoder.
    params: `{"lm": ..., "value": ...}`, on the mesh where there is one.
    tokenizer: its own; text is what it shares with a policy.
    template: puts a prompt and a completion together.
    limits: of tokens; a longer text is truncated as in training.
    kind: `REWARD`, or `PREFERENCE` where it reads two answers.
    affine: the last step, from the head's value to the reward.
    mesh: where rows are split, or None.
  """

  model: transformer.Model
  params: Params
  tokenizer: Any
  template: Template
  limits: Limits
  kind: str = REWARD
  affine: Affine = Affine(1.0, 0.0)
  mesh: jax.sharding.Mesh | None = None


def describe(
  directory: str | Path,
  template: Template,
  limits: Limits,
  *,
  kind: str = REWARD,
  affine: Affine = Affine(1.0, 0.0),
) -> Path:
  """Writes reward.json beside a model's weights, over an older one.

  Args:
    directory: a Hugging Face directory with a scalar head
      (`models.hf_checkpoint.save`).
    template: the model's of training.
    limits: the model's of training.
    kind: `REWARD` or `PREFERENCE`.
    affine: from the head's value to the reward.

  Raises:
    ValueError: a gain or bias that is not finite.
  """
  numbers = {"gain": float(affine.gain), "bias": float(affine.bias)}
  if not np.isfinite(list(numbers.values())).all():
    raise ValueError(f"reward model {directory}: {numbers}; both must be finite")
  content = {
    "kind": kind,
    "template": dataclasses.asdict(template),
    "limits": dataclasses.asdict(limits),
    **numbers,
  }
  path = Path(directory) / FILE
  path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
  return path


def about(directory: str | Path, kind: str = REWARD) -> dict[str, Any]:
  """What reward.json says of a directory; reads no weight.

  Raises:
    ValueError: no reward.json, or a model of the other kind.
  """
  path = Path(directory) / FILE
  if not path.exists():
    raise ValueError(
      f"{directory} is no reward model: it has no {FILE}; `xpo evaluate RUN` writes it "
      "into the policy/ of a finished reward run, reward_model.describe anywhere"
    )
  found = json.loads(path.read_text(encoding="utf-8"))
  if found["kind"] != kind:
    raise ValueError(
      f"{directory} holds a {found['kind']} model, a {kind} model is needed; a reward "
      "model gives a Scorer (reward_model.scorer), a preference model a Preference "
      "(preference_model.preference)"
    )
  return found


def load(
  directory: str | Path,
  *,
  kind: str = REWARD,
  compute_dtype: str = "float32",
  mesh: jax.sharding.Mesh | None = None,
) -> RewardModel:
  """Reads a reward or preference model; every check comes before the weights.

  Args:
    directory: a Hugging Face directory with value_head.safetensors and reward.json.
    kind: what is expected there: `REWARD` or `PREFERENCE`.
    compute_dtype: dtype of activations.
    mesh: where parameters and rows are split, or None: one device.

  Raises:
    ValueError: no reward.json, no scalar head or no tokenizer; a model of the other
      kind; sizes that the mesh does not divide; and what `hf_checkpoint.load` raises.
  """
  said = about(directory, kind)
  found = undescribed(
    directory,
    Template(**said["template"]),
    Limits(**said["limits"]),
    compute_dtype=compute_dtype,
    mesh=mesh,
  )
  affine = Affine(said["gain"], said["bias"])
  return found._replace(kind=kind, affine=affine)


def undescribed(
  directory: str | Path,
  template: Template,
  limits: Limits,
  *,
  compute_dtype: str = "float32",
  mesh: jax.sharding.Mesh | None = None,
) -> RewardModel:
  """Reads a model as it was trained, whatever a reward.json beside it says.

  Args:
    directory: see `load`.
    template: how texts are put together.
    limits: longest prompt and completion.
    compute_dtype: see `load`.
    mesh: see `load`.

  Raises:
    ValueError: as `load`, but for reward.json.
  """
  held = hf_checkpoint.load(directory, compute_dtype)
  if "value" not in held.params:
    raise ValueError(f"{directory} has no scalar head; was it trained as a policy?")
  if held.tokenizer is None:
    raise ValueError(f"{directory} has no tokenizer; save one beside the weights")
  model = transformer.model(held.config)
  try:
    params = _placed(model, held.params, mesh)
  except ValueError as error:
    raise ValueError(f"reward model {directory}: {error}") from None
  return RewardModel(model, params, held.tokenizer, template, limits, mesh=mesh)


def of(held: RewardModel, *, batch: int = 32) -> Scorer:
  """The Scorer of a model in memory.

  Args:
    held: see `RewardModel`.
    batch: texts scored at once.

  Returns:
    A Scorer that never abstains and refuses a reward that is not a finite number.
  """

  def scorer(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    made = _texts.examples(
      prompts, completions, held.tokenizer, held.template, held.limits
    )
    value_N = values(held, made, batch)
    return Scores(np.asarray(held.affine.of(value_N), np.float32))

  return scorer


def scorer(
  directory: str,
  *,
  batch: int = 32,
  compute_dtype: str = "float32",
  mesh: jax.sharding.Mesh | None = None,
) -> Scorer:
  """The Scorer of a saved reward model: `of` what `load` reads."""
  return of(load(directory, compute_dtype=compute_dtype, mesh=mesh), batch=batch)


def sharded(
  directory: str,
  *,
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  batch: int = 32,
  compute_dtype: str = "float32",
) -> Scorer:
  """As `scorer`, over a mesh of all devices, whatever the mesh of a policy.

  Args:
    directory: see `load`.
    data: copies of the model.
    fsdp: devices that split rows and parameters.
    tensor: devices that split heads, MLP and vocabulary.
    batch: texts scored at once, over all devices.
    compute_dtype: dtype of activations.

  Raises:
    ValueError: a mesh that is not all devices, that does not divide the batch or the
      model's sizes; see `load`.
  """
  mesh = meshes.make_mesh(data, fsdp, tensor)
  meshes.check_batch(mesh, batch)
  return scorer(directory, batch=batch, compute_dtype=compute_dtype, mesh=mesh)


def normalise(
  held: RewardModel,
  prompts: Sequence[str],
  completions: Sequence[str],
  rule: Normaliser = kl_control.standardising,
) -> RewardModel:
  """The model with the gain and bias that a rule finds on reference samples.

  Args:
    held: the model; its old gain and bias are dropped.
    prompts: of the samples.
    completions: the reference policy's own (Ziegler et al. 2019, arXiv:1909.08593:
      mean 0, deviation 1), or labellers' demonstrations with
      `rule=controllers.centring` (InstructGPT, arXiv:2203.02155: mean 0).
    rule: `(reward_BK, population_BK) -> Affine`.

  Raises:
    ValueError: fewer than two samples.
  """
  if len(completions) < 2:
    raise ValueError(f"{len(completions)} reference samples; at least 2, better 256")
  raw = of(held._replace(affine=Affine(1.0, 0.0)))(prompts, completions)
  reward_BK = jnp.asarray(raw.value_N)[:, None]
  found = rule(reward_BK, jnp.ones_like(reward_BK))
  return held._replace(affine=Affine(float(found.gain), float(found.bias)))


def mean(scorers: Sequence[Scorer]) -> Scorer:
  """An ensemble's mean. Its members should be normalised on the same samples."""
  return _ensemble(scorers, functools.partial(np.mean, axis=0))


def worst(scorers: Sequence[Scorer]) -> Scorer:
  """An ensemble's least reward: conservative where its members disagree.

  Paper: Coste et al. 2023, "Reward model ensembles help mitigate overoptimization",
  arXiv:2310.02743, Eq. not checked.
  """
  return _ensemble(scorers, functools.partial(np.min, axis=0))


def implicit(
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
  """beta log(policy / reference) of whole completions: the reward that DPO implies.

  Only differences between answers to one prompt have a meaning (Rafailov et al. 2023,
  arXiv:2305.18290: beta log Z of the prompt is left out).

  Args:
    policy: a Hugging Face directory.
    reference: another, with the same tokenizer.
    beta: tie to the reference that the policy was trained with, per nat; > 0.
    before: put before a prompt; see `tokenise.Template`.
    between: put between a prompt and its completion.
    prompt_tokens: a longer prompt keeps its end; None: any length.
    completion_tokens: a longer completion keeps its start; None: any length.
    batch: texts scored at once.
    compute_dtype: dtype of activations.
    mesh: where parameters and rows are split, or None: one device.

  Raises:
    ValueError: beta <= 0, no tokenizer, or two different ones.
  """
  if beta <= 0:
    raise ValueError(f"implicit: beta={beta} must be > 0")
  held = [hf_checkpoint.load(where, compute_dtype) for where in (policy, reference)]
  if any(one.tokenizer is None for one in held):
    raise ValueError(f"{policy} or {reference} has no tokenizer; save one beside")
  first, second = (audit.tokenizer_digest(one.tokenizer) for one in held)
  if first != second:
    raise ValueError(
      f"{policy} and {reference} have different tokenizers: their log-probs are of "
      "different tokens, and a ratio of them is no reward"
    )
  template = Template(before, between)
  limits = Limits(prompt_tokens, completion_tokens, "truncate")
  models = [transformer.model(one.config) for one in held]
  params = [
    _placed(model, {"lm": one.params["lm"]}, mesh)
    for model, one in zip(models, held, strict=True)
  ]

  def scorer(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    made = _texts.examples(prompts, completions, held[0].tokenizer, template, limits)
    logp, ref_logp = (
      _run(_logps, model, tree, made, batch, mesh)
      for model, tree in zip(models, params, strict=True)
    )
    return Scores(np.asarray(beta * (logp - ref_logp), np.float32))

  return scorer


def values(held: RewardModel, made: Sequence[Any], batch: int) -> np.ndarray:
  """The head's values at the last token of examples of one completion, `[N]`.

  Raises:
    ValueError: a value that is not a finite number.
  """
  return _run(_values, held.model, held.params, made, batch, held.mesh)


def _ensemble(
  scorers: Sequence[Scorer], rule: Callable[[np.ndarray], np.ndarray]
) -> Scorer:
  if not scorers:
    raise ValueError("an ensemble needs at least one scorer")

  def ensemble(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    each = [one(prompts, completions).value_N for one in scorers]
    return Scores(np.asarray(rule(np.stack(each)), np.float32))  # NaN: one abstained

  return ensemble


def _placed(
  model: transformer.Model, params: Params, mesh: jax.sharding.Mesh | None
) -> Params:
  if mesh is None:
    return jax.device_put(params)
  axes = {"lm": model.logical_axes(), "value": heads.logical_axes()}
  return place.place_params(mesh, params, {name: axes[name] for name in params})


def _run(function, model, params, made, batch, mesh) -> np.ndarray:
  if mesh is not None:
    meshes.check_batch(mesh, batch)
  found = _texts.in_batches(
    made, batch, functools.partial(function, model, mesh, params)
  )
  if not np.isfinite(found).all():
    at = int((~np.isfinite(found)).argmax())
    raise ValueError(
      f"the reward of text {at} is {found[at]}: the model's weights have diverged, or "
      "its compute_dtype is too narrow"
    )
  return found


def _hidden(model, mesh, params, rows) -> tuple[Params, Array]:
  lm = params["lm"]
  if mesh is not None:
    lm = rules.gather_tables(mesh, lm, model.logical_axes())
  packed = transformer.Rows.plain(rows.tokens_RL, rows.mask_RL)
  return lm, rules.pin(mesh, model.hidden(lm, packed), meshes.ROWS)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _values(model, mesh, params, rows) -> Array:
  _, hidden_RLD = _hidden(model, mesh, params, rows)
  # The position before the last token predicts it, and has read all the others.
  at_R11 = (rows.length_R - 2)[:, None, None]
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
    mesh=mesh,
  )
  return jnp.where(rows.response_RL[:, 1:], stats["logp_BKT"], 0).sum(1)
