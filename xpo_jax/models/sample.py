"""Draw completions: a jitted loop with a key-value cache, and their log-probs.

A draw depends on the key, the row's number, the completion's and the token's, never
on how the batch was cut or padded. `generate.generate` makes texts of them.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from xpo_jax.models import decode_state, token_sampling
from xpo_jax.models.config import Config
from xpo_jax.models.decode_state import Samples
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import place, rules
from xpo_jax.types import Array, Params


class PromptBatch(NamedTuple):
  """Prompts as arrays.

  Attributes:
    prompt_BP: token ids, padded on the right; see `pad`.
    length_B: tokens of each prompt.
    row_B: global number of each prompt; folded into the key.
  """

  prompt_BP: Array
  length_B: Array
  row_B: Array


def pad(
  prompts: Sequence[Sequence[int]], width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts of token ids as `prompt_BP`, padded on the right, and `length_B`.

  Args:
    prompts: token ids, at least one each.
    width: P; None takes the longest prompt. A fixed one compiles once.

  Raises:
    ValueError: an empty prompt, or one longer than `width`.

  Example:
    >>> prompt_BP, length_B = pad([[5, 6, 7], [8]])
    >>> prompt_BP.tolist(), length_B.tolist()
    ([[5, 6, 7], [8, 0, 0]], [3, 1])
  """
  length_B = np.array([len(prompt) for prompt in prompts], np.int32)
  _check_lengths(length_B, None)
  longest = int(length_B.max())
  width = longest if width is None else width
  if longest > width:
    raise ValueError(
      f"prompt {int(length_B.argmax())} has {longest} tokens, width is {width}; "
      "raise width or drop the prompt"
    )
  prompt_BP = np.zeros((len(prompts), width), np.int32)
  for row, prompt in zip(prompt_BP, prompts, strict=True):
    row[: len(prompt)] = prompt
  return prompt_BP, length_B


def sample(
  model: Model,
  params: Params,
  prompts: PromptBatch,
  *,
  config: GenerationConfig,
  key: Array,
  mesh: Mesh | None = None,
) -> Samples:
  """Draws K completions of each prompt; the prompt is read once for its K.

  Decoding stops as soon as every row has met a stop token.

  Args:
    model: of `transformer.model`; `params` has its logical axes where there is a mesh.
    params: of the decoder (the "lm" part).
    prompts: B prompts.
    config: how to draw.
    key: of `jax.random`.
    mesh: devices that the rows are split over, by data and fsdp, and the parameters
      by their logical axes; None: wherever `params` are.

  Returns:
    The completions with their log-probs.

  Raises:
    ValueError: an empty prompt; a token id outside the vocabulary; no stop_ids; prompt
      and max_completion_tokens beyond learned positions; a model without a cache; a
      mixture of two vocabularies; rows that the mesh does not divide. Before any
      compile.
  """
  decoder, prompts = prepare(model, params, prompts, config=config, mesh=mesh)
  if mesh is not None:
    prompts = place.place_rows(mesh, prompts)
  return decode(
    decoder,
    prompts.prompt_BP,
    prompts.length_B,
    key,
    prompts.row_B,
    completions=config.completions,
    max_completion_tokens=config.max_completion_tokens,
  )


def prepare(
  model: Model,
  params: Params,
  prompts: PromptBatch,
  *,
  config: GenerationConfig,
  mesh: Mesh | None = None,
) -> tuple[decode_state.Decoder, PromptBatch]:
  """The arguments of `sample` as a decoder, placed, and prompts on the host.

  Raises:
    ValueError: see `check`.
  """
  check(model, prompts, config)
  models, trees = _models(model, config), (params,)
  if config.mixture is not None:
    trees += (config.mixture.params,)
  share = None if config.mixture is None else np.float32(config.mixture.share)
  arithmetic = config.mixture is not None and config.mixture.arithmetic
  rule = token_sampling.Rule(
    np.asarray(config.stop_ids, np.int32).reshape(-1),
    np.float32(config.temperature),
    None if config.top_k is None else np.int32(config.top_k),
    None if config.top_p is None else np.float32(config.top_p),
    None if arithmetic else share,
    None
    if config.exploration_temperature is None
    else np.float32(config.exploration_temperature),
    None if config.num_tokens is None else np.int32(config.num_tokens),
    share if arithmetic else None,
  )
  if mesh is not None:
    trees = tuple(
      gather_tables(
        place.place_params(mesh, tree, one.logical_axes()), model=one, mesh=mesh
      )
      for one, tree in zip(models, trees, strict=True)
    )
  model_configs = tuple(one.config for one in models)
  decoder = decode_state.Decoder(trees, rule, model_configs, config.greedy, mesh)
  return decoder, PromptBatch(*(np.asarray(x, np.int32) for x in prompts))


def check(model: Model, prompts: PromptBatch, config: GenerationConfig) -> None:
  """Refuses what `sample` cannot do, without the parameters.

  Raises:
    ValueError: as `sample`, but for what concerns the mesh.
  """
  models = _models(model, config)
  for one in models:
    if not isinstance(one.config, Config):
      raise ValueError(
        f"sample needs a model of transformer.model, whose cache it knows; "
        f"model.config is a {type(one.config).__name__}"
      )
  model_configs = tuple(one.config for one in models)
  _check_vocab(model_configs, config)
  prompts = PromptBatch(*map(np.asarray, prompts))
  for model_config in model_configs:
    _check_prompts(model_config, prompts, config.max_completion_tokens)


def _models(model: Model, config: GenerationConfig) -> tuple[Model, ...]:
  """The policy; in a mixture the reference after it."""
  return (model,) if config.mixture is None else (model, config.mixture.model)


def _check_vocab(model_configs: tuple[Config, ...], config: GenerationConfig) -> None:
  vocab = model_configs[0].vocab
  for other in model_configs[1:]:
    if other.vocab != vocab:
      raise ValueError(
        f"the mixture's reference has {other.vocab} tokens, the policy {vocab}; both "
        "must be of one tokenizer"
      )
  if config.top_k is not None and not 1 <= config.top_k <= vocab:
    raise ValueError(
      f"top_k is {config.top_k}; allowed: 1 to {vocab} (the vocabulary), or None"
    )
  if config.stop_ids is None:
    raise ValueError(
      "stop_ids is None, and sample has no tokenizer to take EOS from; give token ids, "
      "() for none"
    )
  _check_ids("stop_ids", np.asarray(config.stop_ids, np.int32).reshape(-1), vocab)


def _check_lengths(length_B: np.ndarray, width: int | None) -> None:
  if not length_B.size:
    raise ValueError("prompts is empty; give at least one prompt")
  if length_B.min() < 1:
    raise ValueError(
      f"prompt {int(length_B.argmin())} is empty; a prompt needs at least one token "
      "(BOS will do)"
    )
  if width is not None and length_B.max() > width:
    raise ValueError(
      f"length_B[{int(length_B.argmax())}] is {length_B.max()}, but prompt_BP is "
      f"{width} wide"
    )


def _check_prompts(
  config: Config, prompts: PromptBatch, max_completion_tokens: int
) -> None:
  prompt_BP, length_B, row_B = prompts
  _check_lengths(length_B, prompt_BP.shape[1])
  if row_B.shape != length_B.shape:
    raise ValueError(
      f"row_B has shape {row_B.shape}; it needs one number for each of the "
      f"{len(length_B)} prompts"
    )
  in_prompt_BP = np.arange(prompt_BP.shape[1])[None] < length_B[:, None]
  _check_ids("prompt_BP", prompt_BP[in_prompt_BP], config.vocab)
  total = int(length_B.max()) + max_completion_tokens
  if config.position_limit is not None and total > config.position_limit:
    raise ValueError(
      f"the longest prompt ({length_B.max()} tokens) plus max_completion_tokens "
      f"({max_completion_tokens}) "
      f"is {total}; this model has {config.positions} positions"
    )


def _check_ids(name: str, ids: np.ndarray, vocab: int) -> None:
  wrong = ids[(ids < 0) | (ids >= vocab)]
  if wrong.size:
    raise ValueError(f"{name} holds id {wrong[0]}; allowed: 0 to {vocab - 1}")


@functools.partial(jax.jit, static_argnames=("model", "mesh"))
def gather_tables(params: Params, *, model: Model, mesh: Mesh) -> Params:
  """Gathers the tables with a vocabulary axis along the other one, as `decode` reads
  them: before its loop, which would do so for every token."""
  return rules.gather_tables(mesh, params, model.logical_axes())


@functools.partial(jax.jit, static_argnames=("completions", "max_completion_tokens"))
def decode(
  decoder: decode_state.Decoder,
  prompt_BP: Array,
  length_B: Array,
  key: Array,
  row_B: Array,
  *,
  completions: int,
  max_completion_tokens: int,
) -> Samples:
  """The compiled part of `sample`, whose arguments `prepare` checks and places."""
  uniform_BKT2 = token_sampling.uniform(key, row_B, completions, max_completion_tokens)
  out, prompts = decode_state.begin(decoder, prompt_BP, length_B, uniform_BKT2)
  branches = decode_state.room(prompts, uniform_BKT2, decoder.mesh)

  def more(carry: tuple) -> Array:
    return carry[0].open_BK.any()

  def step(carry: tuple) -> tuple:
    out, branches = carry
    return decode_state.extend(decoder, out, prompts, branches, uniform_BKT2)

  return jax.lax.while_loop(more, step, (out, branches))[0]
