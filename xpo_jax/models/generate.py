"""Generates completions of prompts: texts, tokens, log-probs, lengths, on the host.

A completion is a function of the key, its row number and the parameters, never of how
prompts were put into batches.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xpo_jax.data import records, tokenise
from xpo_jax.models import continuous_batching, sample
from xpo_jax.models.decode_state import Samples
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.sample import PromptBatch
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import distributed, place
from xpo_jax.sharding import mesh as meshes
from xpo_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Batching:
  """How prompts are put into batches; tokens do not depend on it.

  Attributes:
    batch_size: prompts decoded together, until all their completions have ended; None:
      all. A batch always has this size, whatever the number of prompts: one compile.
    slots: instead, completions decoded together, a slot refilled as soon as its
      completion has ended (`continuous_batching.sample`).
    prompt_width: tokens that prompts are padded to; None: the longest prompt's.
    mesh: devices that prompts (or slots) are split over, by data and fsdp, and the
      parameters by their logical axes; None: wherever the parameters are.

  Raises:
    ValueError: a number below 1, one that the mesh does not divide, or both batch_size
      and slots.
  """

  batch_size: int | None = None
  slots: int | None = None
  prompt_width: int | None = None
  mesh: Mesh | None = None

  def __post_init__(self):
    if self.batch_size is not None and self.slots is not None:
      raise ValueError(
        f"batch_size is {self.batch_size} and slots {self.slots}; set one of them"
      )
    for name, size in (("batch_size", self.batch_size), ("slots", self.slots)):
      if size is not None and size < 1:
        raise ValueError(f"{name} is {size}; it must be at least 1")
      if size is not None and size % self.row_shards:
        raise ValueError(
          f"{name} is {size}; the mesh splits it into {self.row_shards} parts, give a "
          "multiple"
        )

  @property
  def row_shards(self) -> int:
    """Parts that the prompts of a batch are split into."""
    return 1 if self.mesh is None else meshes.row_shards(self.mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class Completions:
  """K completions of each of B prompts, at most T tokens, as arrays of NumPy.

  Attributes:
    prompts: the prompts' texts, special tokens left out.
    texts_BK: the completions' texts: what each adds to its prompt's text when both are
      decoded together; without special tokens and the stop token. A `records.Cut` where
      no stop token ended it.
    tokens_BKT: token ids, the stop token included; 0 after the end.
    logp_BKT: the policy's log-prob of each token, float32, at the sampling temperature
      and before any truncation; 0 after the end.
    sampler_logp_BKT: that of the distribution that each was drawn from (truncated,
      mixed, at another temperature), float32; 0 after the end, and if greedy.
    length_BK: number of tokens, the stop token included.
    ended_BK: whether a stop token ended it; False: it was cut at T.
    slot_steps: decode steps times the completions decoded in each, idle ones included.
  """

  prompts: tuple[str, ...]
  texts_BK: tuple[tuple[str, ...], ...]
  tokens_BKT: np.ndarray
  logp_BKT: np.ndarray
  sampler_logp_BKT: np.ndarray
  length_BK: np.ndarray
  ended_BK: np.ndarray
  slot_steps: int

  @property
  def mask_BKT(self) -> np.ndarray:
    """1 on the completion, the stop token included; float32."""
    column_T = np.arange(self.tokens_BKT.shape[-1])
    return (column_T < self.length_BK[..., None]).astype(np.float32)

  def unpadded(self, x_BKT: np.ndarray) -> tuple[tuple[np.ndarray, ...], ...]:
    """An array by token, such as `tokens_BKT`, as one array for each completion."""
    return tuple(
      tuple(x_T[:length] for x_T, length in zip(x_KT, length_K, strict=True))
      for x_KT, length_K in zip(x_BKT, self.length_BK, strict=True)
    )


def generate(
  model: Model,
  params: Params,
  prompts: Sequence[Sequence[int]],
  *,
  tokenizer: Any,
  config: GenerationConfig,
  key: Array,
  row_B: Sequence[int] | None = None,
  batching: Batching = Batching(),
) -> Completions:
  """Draws K completions of each prompt.

  Args:
    model: of `transformer.model`; where there is a mesh, `params` have its logical
      axes.
    params: of the decoder (the "lm" part).
    prompts: token ids of B prompts, at least one each.
    tokenizer: of transformers; its EOS and the model's `Config.stop_ids` end a
      completion where the config has no `stop_ids`. Ids that it does not have are not
      drawn.
    config: how completions are drawn.
    key: of `jax.random`.
    row_B: number of each prompt: same key, number and parameters, same completions.
      None: 0 to B - 1.
    batching: how prompts are put into batches.

  Returns:
    The completions, on the host of every process.

  Raises:
    ValueError: no prompts, an empty one or one above `prompt_width`; a tokenizer
      without EOS and no `stop_ids`; what `sample.sample` refuses.
  """
  if config.stop_ids is None:
    stop_ids = {tokenizer.eos_token_id, *model.config.stop_ids} - {None}
    if not stop_ids:
      raise ValueError(
        "stop_ids is None and the tokenizer has no EOS, so no completion could end; "
        "set stop_ids, () for none"
      )
    config = dataclasses.replace(config, stop_ids=tuple(sorted(stop_ids)))
  if config.num_tokens is None and len(tokenizer) < model.config.vocab:
    config = dataclasses.replace(config, num_tokens=len(tokenizer))
  prompt_BP, length_B = sample.pad(prompts, batching.prompt_width)
  row_B = np.arange(len(prompts)) if row_B is None else np.asarray(row_B)
  arrays = PromptBatch(prompt_BP, length_B, row_B)
  sample.check(model, arrays, config)
  # Placed once, not for each batch.
  if batching.mesh is None:
    if not any(map(distributed.is_global, jax.tree.leaves(params))):
      params = jax.device_put(params)
  else:
    params = place.place_params(batching.mesh, params, model.logical_axes())
  if batching.slots is None:
    out, slot_steps = _in_batches(model, params, arrays, config, key, batching)
  else:
    out, work = continuous_batching.sample(
      model,
      params,
      arrays,
      config=config,
      key=key,
      slots=batching.slots,
      mesh=batching.mesh,
    )
    slot_steps = work.steps * batching.slots
  prompt_texts, texts_BK = _decode(tokenizer, prompts, out)
  return Completions(
    prompts=prompt_texts,
    texts_BK=texts_BK,
    tokens_BKT=out.tokens_BKT,
    logp_BKT=out.logp_BKT,
    sampler_logp_BKT=out.proposal_logp_BKT,
    length_BK=out.length_BK,
    ended_BK=out.ended_BK,
    slot_steps=slot_steps,
  )


def batch_indices(count: int, batch_size: int) -> Iterator[np.ndarray]:
  """Indices of each batch; the last is filled up with the last index.

  Every batch so has one shape, and one compile does.

  Example:
    >>> [indices.tolist() for indices in batch_indices(5, 3)]
    [[0, 1, 2], [3, 4, 4]]
  """
  for start in range(0, count, batch_size):
    yield np.minimum(np.arange(start, start + batch_size), count - 1)


def _in_batches(
  model: Model,
  params: Params,
  prompts: PromptBatch,
  config: GenerationConfig,
  key: Array,
  batching: Batching,
) -> tuple[Samples, int]:
  """Samples on the host, and the slot steps they took."""
  B = len(prompts.length_B)
  batch_size = batching.batch_size or meshes.padded_rows(batching.mesh, B)
  batches, slot_steps = [], 0
  for indices in batch_indices(B, batch_size):
    out = sample.sample(
      model,
      params,
      PromptBatch(*(x[indices] for x in prompts)),
      config=config,
      key=key,
      mesh=batching.mesh,
    )
    out = distributed.to_host(out)
    slot_steps += int(out.length_BK.max() - 1) * out.length_BK.size
    batches.append(out)
  return jax.tree.map(lambda *x: np.concatenate(x)[:B], *batches), slot_steps


def _decode(
  tokenizer: Any, prompts: Sequence[Sequence[int]], out: Samples
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
  """Texts of prompts and completions."""
  prompt_texts, texts_BK = [], []
  lengths_BK = out.length_BK - out.ended_BK  # without the stop token
  for prompt, tokens_KT, length_K, ended_K in zip(
    prompts, out.tokens_BKT, lengths_BK, out.ended_BK, strict=True
  ):
    prompt_text = tokenise.decode(tokenizer, prompt)
    # Together: a tokenizer may decode a completion's first token otherwise alone.
    both_K = [
      tokenise.decode(tokenizer, [*prompt, *tokens_T[:length]])
      for tokens_T, length in zip(tokens_KT, length_K, strict=True)
    ]
    prompt_texts.append(prompt_text)
    texts_K = [_without_prompt(both, prompt_text) for both in both_K]
    texts_BK.append(
      tuple(
        text if ended else records.Cut(text)
        for text, ended in zip(texts_K, ended_K, strict=True)
      )
    )
  return tuple(prompt_texts), tuple(texts_BK)


def _without_prompt(text: str, prompt_text: str) -> str:
  """The text from where it first differs from the prompt's, at the latest its end."""
  if text.startswith(prompt_text):
    return text[len(prompt_text) :]
  # The completion's first token changed the prompt's last characters.
  same = [a == b for a, b in zip(text, prompt_text, strict=False)]
  return text[same.index(False) if False in same else len(same) :]
