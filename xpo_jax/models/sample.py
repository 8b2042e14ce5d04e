"""Draw completions: a jitted loop with a key-value cache, and their log-probs.

A draw depends on the key, the row's number, the completion's and the token's, never
on how the batch was cut or padded.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from xpo_jax.models import decode_state, token_sampling
from xpo_jax.models.config import Config
from xpo_jax.models.decode_state import Samples
from xpo_jax.models.generation_config import Mixture
from xpo_jax.models.transformer import Model
from xpo_jax.types import Array, Params


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
  prompt_BP: Array,
  length_B: Array,
  *,
  completions: int,
  max_completion_tokens: int,
  key: Array,
  row_B: Array,
  stop_ids: Sequence[int],
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  greedy: bool = False,
  mixture: Mixture | None = None,
  exploration_temperature: float | None = None,
) -> Samples:
  """Draws K completions of each prompt; the prompt is read once for its K.

  Decoding stops as soon as every row has met a stop token.

  Args:
    model: of `transformer.model`.
    params: of the decoder (the "lm" part).
    prompt_BP: token ids, padded on the right; see `pad`.
    length_B: tokens of each prompt.
    completions: K.
    max_completion_tokens: T.
    key: of `jax.random`.
    row_B: global number of each prompt; folded into the key.
    stop_ids: tokens that end a completion; may be empty.
    temperature: divides the logits, > 0.
    top_k: draw among the k likeliest tokens (and ties with the last).
    top_p: draw among the fewest likeliest tokens whose probability reaches p (and
      ties with the last); after top_k, if both are given.
    greedy: take the likeliest token. `logp_BKT` is still at `temperature`.
    mixture: draw from a mixture with this model; top_k, top_p and greedy then
      are about the mixture. `logp_BKT` is still the policy's.
    exploration_temperature: draw at this temperature instead, to explore. `logp_BKT` is
      still at `temperature`.

  Returns:
    The completions with their log-probs.

  Raises:
    ValueError: an empty prompt; a number outside its range; prompt and
      max_completion_tokens beyond learned positions; a model without a cache; a mixture
      of two vocabularies. Before any compile.
  """
  decoder, prompt_BP, length_B, row_B = checked(
    model,
    params,
    prompt_BP,
    length_B,
    completions=completions,
    max_completion_tokens=max_completion_tokens,
    row_B=row_B,
    stop_ids=stop_ids,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    greedy=greedy,
    mixture=mixture,
    exploration_temperature=exploration_temperature,
  )
  return _sample(
    decoder,
    prompt_BP,
    length_B,
    key,
    row_B,
    completions=completions,
    max_completion_tokens=max_completion_tokens,
  )


def checked(
  model: Model,
  params: Params,
  prompt_BP: Array,
  length_B: Array,
  *,
  completions: int,
  max_completion_tokens: int,
  row_B: Array,
  stop_ids: Sequence[int],
  temperature: float,
  top_k: int | None,
  top_p: float | None,
  greedy: bool,
  mixture: Mixture | None,
  exploration_temperature: float | None,
) -> tuple[decode_state.Decoder, np.ndarray, np.ndarray, np.ndarray]:
  """The arguments of `sample` as a decoder, prompts, lengths and row numbers.

  Raises:
    ValueError: as `sample`.
  """
  models = (model,) if mixture is None else (model, mixture.model)
  for one in models:
    if not isinstance(one.config, Config):
      raise ValueError(
        f"sample needs a model of transformer.model, whose cache it knows; "
        f"model.config is a {type(one.config).__name__}"
      )
  configs = tuple(one.config for one in models)
  vocab = configs[0].vocab
  _check_draw(
    vocab, completions, max_completion_tokens, temperature, top_k, top_p, greedy
  )
  if exploration_temperature is not None and not (
    exploration_temperature > 0 and not greedy
  ):
    raise ValueError(
      f"exploration_temperature is {exploration_temperature}, greedy is {greedy}; "
      "exploration_temperature must be > 0, and greedy=True "
      "draws nothing"
    )
  if mixture is not None:
    _check_mixture(vocab, mixture)
  prompt_BP, length_B = np.asarray(prompt_BP), np.asarray(length_B)
  for config in configs:
    _check_prompts(config, prompt_BP, length_B, max_completion_tokens)
  row_B = np.asarray(row_B)
  if row_B.shape != length_B.shape:
    raise ValueError(
      f"row_B has shape {row_B.shape}; it needs one number for each of the "
      f"{len(length_B)} prompts"
    )
  stop = np.asarray(stop_ids, np.int32).reshape(-1)
  _check_ids("stop_ids", stop, vocab)
  rule = token_sampling.Rule(
    stop,
    np.float32(temperature),
    None if top_k is None else np.int32(top_k),
    None if top_p is None else np.float32(top_p),
    None if mixture is None else np.float32(mixture.share),
    None if exploration_temperature is None else np.float32(exploration_temperature),
  )
  both = (params,) if mixture is None else (params, mixture.params)
  decoder = decode_state.Decoder(both, rule, configs, greedy)
  prompt_BP, length_B, row_B = (
    x.astype(np.int32) for x in (prompt_BP, length_B, row_B)
  )
  return decoder, prompt_BP, length_B, row_B


def _check_draw(
  vocab: int,
  completions: int,
  max_completion_tokens: int,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
  greedy: bool,
) -> None:
  if completions < 1:
    raise ValueError(f"completions is {completions}; it must be at least 1")
  if max_completion_tokens < 1:
    raise ValueError(
      f"max_completion_tokens is {max_completion_tokens}; it must be at least 1"
    )
  if not temperature > 0:
    raise ValueError(
      f"temperature is {temperature}; it must be > 0 (greedy=True takes the "
      "likeliest token)"
    )
  if top_k is not None and not 1 <= top_k <= vocab:
    raise ValueError(
      f"top_k is {top_k}; allowed: 1 to {vocab} (the vocabulary), or None"
    )
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f"top_p is {top_p}; allowed: 0 < top_p <= 1, or None")
  if greedy and (top_k is not None or top_p is not None):
    raise ValueError(
      f"greedy=True takes one token: top_k={top_k} and top_p={top_p} must be None"
    )


def _check_mixture(vocab: int, mixture: Mixture) -> None:
  if not 0 <= mixture.share <= 1:
    raise ValueError(
      f"mixture.share is {mixture.share}; it is the reference's exponent, in [0, 1]"
    )
  if mixture.model.config.vocab != vocab:
    raise ValueError(
      f"the mixture's reference has {mixture.model.config.vocab} tokens, the policy "
      f"{vocab}; both must be of one tokenizer"
    )


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
  config: Config,
  prompt_BP: np.ndarray,
  length_B: np.ndarray,
  max_completion_tokens: int,
) -> None:
  _check_lengths(length_B, prompt_BP.shape[1])
  held = np.arange(prompt_BP.shape[1])[None] < length_B[:, None]
  _check_ids("prompt_BP", prompt_BP[held], config.vocab)
  total = int(length_B.max()) + max_completion_tokens
  if config.rotary is None and total > config.positions:
    raise ValueError(
      f"the longest prompt ({length_B.max()} tokens) plus max_completion_tokens "
      f"({max_completion_tokens}) "
      f"is {total}; this model has {config.positions} learned positions"
    )


def _check_ids(name: str, ids: np.ndarray, vocab: int) -> None:
  wrong = ids[(ids < 0) | (ids >= vocab)]
  if wrong.size:
    raise ValueError(f"{name} holds id {wrong[0]}; allowed: 0 to {vocab - 1}")


@functools.partial(jax.jit, static_argnames=("completions", "max_completion_tokens"))
def _sample(
  decoder: decode_state.Decoder,
  prompt_BP: Array,
  length_B: Array,
  key: Array,
  row_B: Array,
  *,
  completions: int,
  max_completion_tokens: int,
) -> Samples:
  uniform_BKT2 = token_sampling.uniform(key, row_B, completions, max_completion_tokens)
  out, prompts = decode_state.begin(decoder, prompt_BP, length_B, uniform_BKT2)
  branches = decode_state.room(prompts, uniform_BKT2)
  layers = decode_state.layers(decoder)

  def more(carry: tuple) -> Array:
    return carry[0].open_BK.any()

  def step(carry: tuple) -> tuple:
    out, branches = carry
    return decode_state.extend(layers, out, prompts, branches, uniform_BKT2)

  return jax.lax.while_loop(more, step, (out, branches))[0]
