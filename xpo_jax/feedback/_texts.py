"""Texts to rows of tokens of a few shapes, and results back in the order of the texts.

Tokens are those of training (`data.tokenise`): prompt and completion in one piece, the
same truncation, EOS at the end. But any text must have a value here, so an empty
completion is just EOS, and where tokens merge across the prompt's end the completion
starts with the merged one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.data import records, tokenise
from xpo_jax.data.tokenise import Example, Limits, Template
from xpo_jax.models import sample
from xpo_jax.types import Layout

_LEAST = 32  # tokens of the shortest row


class Rows(NamedTuple):
  """R texts, a row each, padded on the right.

  Attributes:
    tokens_RL: token ids.
    mask_RL: 1 on tokens.
    response_RL: 1 on the tokens of completions.
    length_R: tokens of each text.
  """

  tokens_RL: np.ndarray
  mask_RL: np.ndarray
  response_RL: np.ndarray
  length_R: np.ndarray


def examples(
  prompts: Sequence[str],
  completions: Sequence[str],
  tokenizer: Any,
  template: Template,
  limits: Limits,
) -> list[Example]:
  """An example of one completion for each text; no text is refused.

  Raises:
    ValueError: prompts and completions of unequal number.
  """
  if len(prompts) != len(completions):
    raise ValueError(f"{len(prompts)} prompts, but {len(completions)} completions")
  rows = [records.Prompt(str(n), prompt) for n, prompt in enumerate(prompts)]
  heads = tokenise.tokenise_prompts(rows, tokenizer, template)
  starts = tokenise.tokenise_prompts(
    rows,
    tokenizer,
    template,
    Limits(limits.prompt, long_prompt="truncate"),
  )
  texts = [
    records.Prompt(str(n), template.before + prompt + template.between + completion)
    for n, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
  ]
  made = []
  wholes = tokenise.tokenise_prompts(texts, tokenizer)
  for n, (head, start, whole) in enumerate(zip(heads, starts, wholes, strict=True)):
    shared = min(len(head), len(whole))
    differ = head[:shared] != whole[:shared]
    shared = int(differ.argmax()) if differ.any() else shared
    answer = np.append(whole[shared:], np.int32(tokenizer.eos_token_id))
    start = start[: len(start) - (len(head) - shared)]
    if len(whole) > shared and whole[-1] == tokenizer.eos_token_id:
      answer = answer[:-1]
    made.append(Example(str(n), start, (answer[: limits.completion],), Layout.DEMO))
  return made


def in_batches(
  made: Sequence[Example], rows: int, run: Callable[[Rows], Any]
) -> np.ndarray:
  """Runs a function of `Rows` over examples of one completion.

  Texts are sorted by length and cut into batches of `rows`; a batch is as wide as its
  longest text, rounded up to a power of two, so that few shapes are ever compiled. The
  last batch is filled with copies of its last row.

  Args:
    made: see `examples`.
    rows: texts of a batch.
    run: `Rows -> [R]`.

  Returns:
    A number for each example, in their order.
  """
  out = np.zeros(len(made), np.float32)
  order = np.argsort([example.tokens for example in made], kind="stable")
  for start in range(0, len(order), rows):
    at_R = order[np.minimum(np.arange(start, start + rows), len(order) - 1)]
    whole = [np.concatenate([made[n].prompt, *made[n].completions]) for n in at_R]
    longest = max(map(len, whole))
    width = max(_LEAST, 1 << (longest - 1).bit_length())
    tokens_RL, length_R = sample.pad(whole, width)
    column_L = np.arange(width)
    prompt_R = np.array([len(made[n].prompt) for n in at_R])
    mask_RL = column_L < length_R[:, None]
    response_RL = mask_RL & (column_L >= prompt_R[:, None])
    out[at_R] = np.asarray(run(Rows(tokens_RL, mask_RL, response_RL, length_R)))
  return out
