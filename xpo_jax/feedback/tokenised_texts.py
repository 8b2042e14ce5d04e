"""Tokenises texts and runs a model on padded batches of a few static shapes.

Tokens are those of training (`data.tokenise`): prompt and completion are tokenised
together, with the same truncation and a final EOS, which a completion that was cut
(`records.Cut`) does not get. Unlike there, every text is accepted: an empty completion
is EOS alone, and where tokens merge across the end of the prompt the completion starts
with the merged token.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.data import records, tokenise
from xpo_jax.data.records import Text
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Example, Limits
from xpo_jax.models import sample
from xpo_jax.sharding import distributed
from xpo_jax.types import Layout

_MIN_WIDTH = 32  # tokens


class TextBatch(NamedTuple):
  """A batch of R texts, padded on the right.

  Attributes:
    tokens_RL: token ids.
    mask_RL: True on tokens.
    response_RL: True on the tokens of completions.
    length_R: number of tokens of each text.
  """

  tokens_RL: np.ndarray
  mask_RL: np.ndarray
  response_RL: np.ndarray
  length_R: np.ndarray


def to_examples(
  prompts: Sequence[str],
  completions: Sequence[Text],
  tokenizer: Any,
  *,
  template: Template,
  limits: Limits,
) -> list[Example]:
  """Tokenises each text as an example of one completion, as training did; rejects no
  plain text.

  Args:
    prompts: N strings; the messages of a `records.Conversation` are rendered by the
      tokenizer's chat template.
    completions: N answers; a string after messages is the assistant's turn.
    tokenizer: of transformers.
    template: of training.
    limits: of training.

  Raises:
    ValueError: prompts and completions of unequal number; messages, and no chat
      template.
    BadRecords: the chat template refuses the messages.
  """
  if len(prompts) != len(completions):
    raise ValueError(f"{len(prompts)} prompts, but {len(completions)} completions")
  prompt_records = [
    records.with_messages(records.Prompt(str(n), prompt))
    for n, prompt in enumerate(prompts)
  ]
  full_prompts = tokenise.tokenise_prompts(prompt_records, tokenizer, template)
  truncated_prompts = tokenise.tokenise_prompts(
    prompt_records,
    tokenizer,
    template,
    limits=Limits(limits.prompt, long_prompt="truncate"),
  )
  answers = [
    records.with_messages(records.Demonstration(str(n), prompt, completion))
    for n, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
  ]
  texts = tokenise.encode_answers(answers, tokenizer, template)
  examples = []
  for n, (full, prompt, text) in enumerate(
    zip(full_prompts, truncated_prompts, texts, strict=True)
  ):
    shared = min(len(full), len(text))
    differs = full[:shared] != text[:shared]
    shared = int(differs.argmax()) if differs.any() else shared
    completion = text[shared:]
    prompt = prompt[: len(prompt) - (len(full) - shared)]
    ended = completion[-1:].tolist() == [tokenizer.eos_token_id]
    if not ended and not records.is_cut(completions[n]):
      completion = np.append(completion, np.int32(tokenizer.eos_token_id))
    completion = completion[: limits.completion]
    examples.append(Example(str(n), prompt, (completion,), Layout.DEMO))
  return examples


def to_chat_examples(
  prompts: Sequence[str], completions: Sequence[Text], tokenizer: Any
) -> list[Example]:
  """Tokenises each text as an example of one completion, as transformers'
  `apply_chat_template` does: the rendering to its end, and no EOS beside its own.

  Args:
    prompts: N strings, each a message of the user, or messages
      (`records.Conversation`).
    completions: N answers; a string is the assistant's message.
    tokenizer: of transformers, with a chat template.

  Raises:
    ValueError: prompts and completions of unequal number.
    BadRecords: the chat template refuses the messages.
  """
  if len(prompts) != len(completions):
    raise ValueError(f"{len(prompts)} prompts, but {len(completions)} completions")
  conversations = [
    prompt
    if isinstance(prompt, records.Conversation)
    else records.Conversation((records.Turn("user", prompt),))
    for prompt in prompts
  ]
  data = [
    records.with_messages(records.Demonstration(str(n), prompt, completion))
    for n, (prompt, completion) in enumerate(
      zip(conversations, completions, strict=True)
    )
  ]
  texts = tokenise.encode_conversations(data, tokenizer)
  return [
    Example(row.uid, text[:0], (text,), Layout.DEMO)
    for row, text in zip(data, texts, strict=True)
  ]


def map_batches(
  examples: Sequence[Example], batch: int, run: Callable[[TextBatch], Any]
) -> np.ndarray:
  """Applies a function of `TextBatch` to examples of one completion.

  Texts are sorted by length and cut into batches of equal size; a batch is as wide as
  its longest text, rounded up to a power of two, so that few shapes are compiled. The
  last batch is padded with copies of its last text.

  Args:
    examples: see `to_examples`.
    batch: texts per batch.
    run: `TextBatch -> [R]`, or `[R, J]` for several numbers of each text.

  Returns:
    Float32 numbers of each example, in their order.
  """
  values = []
  order = np.argsort([example.tokens for example in examples], kind="stable")
  for start in range(0, len(order), batch):
    index_R = order[np.minimum(np.arange(start, start + batch), len(order) - 1)]
    texts = [
      np.concatenate([examples[n].prompt, *examples[n].completions]) for n in index_R
    ]
    longest = max(map(len, texts))
    width = padded_width(longest, _MIN_WIDTH)
    tokens_RL, length_R = sample.pad(texts, width)
    column_L = np.arange(width)
    prompt_R = np.array([len(examples[n].prompt) for n in index_R])
    mask_RL = column_L < length_R[:, None]
    response_RL = mask_RL & (column_L >= prompt_R[:, None])
    text_batch = TextBatch(tokens_RL, mask_RL, response_RL, length_R)
    values.append(np.asarray(distributed.to_host(run(text_batch)), np.float32))
  if not values:
    return np.zeros(0, np.float32)
  value_N = np.concatenate(values)[: len(examples)]
  return value_N[np.argsort(order)]


def padded_width(longest: int, least: int) -> int:
  """The least power of two that holds `longest` tokens and is at least `least`."""
  return max(least, 1 << (longest - 1).bit_length())
