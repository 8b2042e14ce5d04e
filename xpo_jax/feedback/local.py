"""Builds a judge from a local decoder: sampled texts or next-token probabilities.

Candidates' texts are tokenised separately from the prompt around them and never as
control tokens. The policy can be its own judge.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.data import tokenise
from xpo_jax.feedback import judge, prompting, tokenised_texts
from xpo_jax.feedback.judge import Backend
from xpo_jax.feedback.progress import OnProgress, print_every
from xpo_jax.feedback.prompting import Conversation, Piece
from xpo_jax.feedback.protocol import Preference, Scorer, SelfFeedback
from xpo_jax.models import generate, hf_checkpoint, sample, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.transformer import Model
from xpo_jax.ops import capping
from xpo_jax.sharding import distributed
from xpo_jax.types import Array, Params

_MIN_WIDTH = 64  # tokens; widths are this times a power of two, for few compilations


def backend(
  model: Model,
  params: Params,
  tokenizer: Any,
  *,
  name: str = "local model",
  max_completion_tokens: int = 256,
  temperature: float = 1.0,
  top_p: float | None = None,
  rows: int = 8,
  seed: int = 0,
  on_progress: OnProgress | None = None,
) -> Backend:
  """Builds a judge's backend from a decoder.

  Args:
    model: of `transformer.model`; any `Model` if no texts are generated.
    params: of the decoder (the "lm" part).
    tokenizer: of transformers. With a chat template, prompts are conversations; without
      one, plain text.
    name: for messages.
    max_completion_tokens: maximum length of a generated text.
    temperature: sampling temperature; > 0.
    top_p: see `GenerationConfig`.
    rows: prompts per batch.
    seed: of the samples; a text is a function of seed, draw and conversation.
    on_progress: called with the completed and total queries of a call; None: a line
      every ten seconds on standard error.

  Returns:
    Backend; log-probabilities are over the whole vocabulary.
  """
  if tokenizer.eos_token_id is None:
    raise ValueError(f"judge {name}: its tokenizer has no EOS; set eos_token")
  config = GenerationConfig(max_completion_tokens, temperature=temperature, top_p=top_p)

  def write(conversations: Sequence[Conversation], draw: int) -> list[str | None]:
    prompts = [encode(each, tokenizer) for each in conversations]
    key = jax.random.fold_in(jax.random.key(seed), draw)
    texts: list[str | None] = []
    tell = on_progress or print_every(10, name)
    for start in range(0, len(prompts), rows):
      ids = prompts[start : start + rows]
      drawn = generate.generate(
        model,
        params,
        ids,
        tokenizer=tokenizer,
        config=config,
        key=key,
        row_B=[_row(each) for each in ids],
        batching=generate.Batching(rows, prompt_width=_width(ids)),
      )
      texts += [text.strip() for (text,) in drawn.texts_BK]
      tell(len(texts), len(prompts))
    return texts

  def options(
    conversations: Sequence[Conversation], names: Sequence[str], draw: int
  ) -> np.ndarray:
    del draw  # nothing is drawn
    read = [_option_tokens(each, names, tokenizer, name) for each in conversations]
    logp_NJ, tell = [], on_progress or print_every(10, name)
    for start in range(0, len(read), rows):
      ids = [prompt for prompt, _ in read[start : start + rows]]
      ids_J = [names_J for _, names_J in read[start : start + rows]]
      missing = rows - len(ids)
      filled = [*ids, *ids[:1] * missing]
      prompt_BP, length_B = sample.pad(filled, _width(filled))
      option_BJ = np.array([*ids_J, *ids_J[:1] * missing], np.int32)
      logp_BJ = _option_logps(model, params, prompt_BP, length_B, option_BJ)
      logp_NJ.append(distributed.to_host(logp_BJ)[: len(ids)])
      tell(start + len(ids), len(read))
    return np.concatenate(logp_NJ)

  return Backend(name, write, options)


def load(directory: str | Path, **settings: Any) -> Backend:
  """Loads a Hugging Face directory as a backend; `settings` are those of `backend`.

  Raises:
    ValueError: as `hf_checkpoint.load`, or no tokenizer.
  """
  checkpoint = hf_checkpoint.load(directory, remat="none")
  if checkpoint.tokenizer is None:
    raise ValueError(
      f"{directory} has no tokenizer; save one in the directory of the weights"
    )
  params = jax.device_put(checkpoint.params["lm"])
  model = transformer.model(checkpoint.config)
  return backend(model, params, checkpoint.tokenizer, name=str(directory), **settings)


def preference(
  directory: str,
  *,
  prompt: str = "pairwise",
  principles: str | None = None,
  logprobs: bool = True,
  reasoning: bool = False,
  samples: int = 1,
  retries: int = 2,
  both_orders: bool = True,
  clamp: tuple[float, float] | None = None,
) -> Preference:
  """Builds `judge.preference` on a directory's model, from plain values."""
  return judge.preference(
    load(directory),
    prompt=prompt,
    principles=principles,
    logprobs=logprobs,
    reasoning=reasoning,
    samples=samples,
    retries=retries,
    both_orders=both_orders,
    clamp=clamp,
  )


def scorer(
  directory: str,
  *,
  prompt: str = "additive",
  least: float = 0,
  most: float = 5,
  samples: int = 3,
  retries: int = 2,
) -> Scorer:
  """Builds `judge.scorer` on a directory's model, from plain values."""
  return judge.scorer(
    load(directory),
    prompt=prompt,
    least=least,
    most=most,
    samples=samples,
    retries=retries,
  )


def self_rating(
  *, prompt: str = "rating", levels: int = 5, rows: int = 64
) -> SelfFeedback:
  """Builds self-feedback by `judge.rating`: the policy rates its own completions.

  Args:
    prompt: a prompt file with `{prompt}`, `{completion}` and `{levels}`.
    levels: the highest rating.
    rows: completions per batch.

  Raises:
    ValueError: an invalid prompt file, or too few levels.
  """
  return _self_feedback(
    lambda backend: judge.rating(backend, prompt=prompt, levels=levels), rows
  )


def self_scorer(
  *,
  prompt: str = "additive",
  least: float = 0,
  most: float = 5,
  samples: int = 3,
  rows: int = 64,
) -> SelfFeedback:
  """Builds self-feedback by `judge.scorer`: the policy writes reasons and a score.

  Paper: Self-Rewarding Language Models, Yuan et al. 2024, arXiv:2401.10020.

  Args:
    prompt: a prompt file with `{prompt}` and `{completion}`.
    least: the lowest score.
    most: the highest score.
    samples: number of verdicts to average.
    rows: completions per batch.

  Raises:
    ValueError: an invalid prompt file, or numbers out of range.
  """
  hparams = {"prompt": prompt, "least": least, "most": most, "samples": samples}
  return _self_feedback(lambda backend: judge.scorer(backend, **hparams), rows)


def _self_feedback(make_scorer: Callable[[Backend], Scorer], rows: int) -> SelfFeedback:
  name = "the policy itself"
  # Raises on an invalid prompt file before anything is sampled.
  make_scorer(Backend(name, lambda *args: [], lambda *args: np.zeros((0, 0))))

  def make(model: Model, params: Params, tokenizer: Any) -> Scorer:
    return make_scorer(backend(model, params, tokenizer, name=name, rows=rows))

  return SelfFeedback(make)


@functools.partial(jax.jit, static_argnames="model")
def _option_logps(
  model: Model, params: Params, prompt_BP: Array, length_B: Array, option_BJ: Array
) -> Array:
  mask_BP = jnp.arange(prompt_BP.shape[1])[None] < length_B[:, None]
  hidden_BPD = model.hidden(params, transformer.Rows.plain(prompt_BP, mask_BP))
  last_B11 = (length_B - 1)[:, None, None]
  hidden_BD = jnp.take_along_axis(hidden_BPD, last_B11, axis=1)[:, 0]
  logits_BV = jnp.einsum(
    "bd,vd->bv", hidden_BD, model.head(params), preferred_element_type=jnp.float32
  )
  logits_BV = capping.soft_cap(logits_BV, model.softcap)
  return jnp.take_along_axis(jax.nn.log_softmax(logits_BV), option_BJ, axis=1)


def _width(prompts: Sequence[Sequence[int]]) -> int:
  return tokenised_texts.padded_width(max(map(len, prompts)), _MIN_WIDTH)


def _row(ids: Sequence[int]) -> int:
  """Returns a prompt's random-key index, a hash of its tokens."""
  return int(prompting.hash_uniform(0, str(list(ids))) * (1 << 31))


# --- Conversations to tokens


def encode(conversation: Conversation, tokenizer: Any) -> list[int]:
  """Tokenises a conversation; BOS stands where the chat template writes it, or without
  a template the tokenizer by itself adds it.

  Untrusted pieces are tokenised without control tokens, whatever their text.
  """
  ids: list[int] = []
  for piece in _rendered(conversation, tokenizer):
    ids += _ids(piece.text, tokenizer, piece.trusted)
  bos = tokenizer.bos_token_id
  plain = tokenizer.chat_template is None and tokenise.adds_bos(tokenizer)
  return [bos, *ids] if plain and ids[:1] != [bos] else ids


def _ids(text: str, tokenizer: Any, trusted: bool = True) -> list[int]:
  text = text.encode("utf-8", "replace").decode("utf-8")  # unpaired surrogates
  if not trusted:
    # The tokenizer splits special tokens, but not added tokens that are not special.
    for token in tokenizer.added_tokens_decoder.values():
      if not token.special and token.content.strip():  # whitespace is no control token
        text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
  return tokenizer(text, add_special_tokens=False, split_special_tokens=not trusted)[
    "input_ids"
  ]


def _rendered(conversation: Conversation, tokenizer: Any) -> list[Piece]:
  """Renders the conversation as pieces of one text, up to the start of the response."""
  if tokenizer.chat_template is None:
    pieces: list[Piece] = []
    for turn in conversation:
      pieces += [Piece("\n\n"), *turn.pieces] if pieces else turn.pieces
    return pieces
  # Untrusted texts are inserted after the template is applied.
  untrusted = [p.text for turn in conversation for p in turn.pieces if not p.trusted]
  texts = [p.text for turn in conversation for p in turn.pieces]
  marker = f"text-{prompting.make_fence(texts)}"
  turns = [
    {
      "role": t.role,
      "content": "".join(p.text if p.trusted else marker for p in t.pieces),
    }
    for t in conversation
  ]
  whole = tokenizer.apply_chat_template(
    turns, tokenize=False, add_generation_prompt=True
  )
  rendered = whole.split(marker)
  if len(rendered) != len(untrusted) + 1:
    raise ValueError(
      f"the judge's chat template renders {len(rendered) - 1} of {len(untrusted)} "
      "texts; it must render every message once"
    )
  pieces = [Piece(rendered[0])]
  for text, after in zip(untrusted, rendered[1:], strict=True):
    pieces += [Piece(text, trusted=False), Piece(after)]
  return [piece for piece in pieces if piece.text]


def _option_tokens(
  conversation: Conversation, names: Sequence[str], tokenizer: Any, judge_name: str
) -> tuple[list[int], list[int]]:
  """Returns the prompt's tokens up to the verdict, and one token for each option.

  In a chat the response starts at once. In plain text a space comes first, which is
  tokenised with the prompt or with the option: both are tried.
  """
  ids = encode(conversation, tokenizer)
  tail = _rendered(conversation, tokenizer)[-1].text
  start = _ids(tail, tokenizer)
  plain, chat = (("", " "), (" ", ""), ("", "")), (("", ""),)
  for before, joint in plain if tokenizer.chat_template is None else chat:
    base = _ids(tail + before, tokenizer)
    ends = [_ids(tail + before + joint + name, tokenizer) for name in names]
    if all(end[:-1] == base for end in ends) and len({e[-1] for e in ends}) == len(
      ends
    ):
      return ids[: len(ids) - len(start)] + base, [end[-1] for end in ends]
  encoded = ", ".join(f"{name!r}: {_ids(name, tokenizer)}" for name in names)
  raise ValueError(
    f"judge {judge_name}: its tokenizer does not encode each verdict as one distinct "
    f"token ({encoded}); choose other options, fewer levels, or logprobs=False"
  )
