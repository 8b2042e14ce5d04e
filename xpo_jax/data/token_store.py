"""Stores a tokenised data set as flat arrays, from which batches are cut by index."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.data.tokenise import Example


class TokenStore(NamedTuple):
  """A data set as flat arrays of concatenated pieces (prompts and completions).

  Attributes:
    tokens: int32, every piece of every example in order.
    loss: bool, True on the tokens with loss.
    piece_start: int64, the offset of each piece in `tokens`, then the total length.
    group_start: int64, the first piece (the prompt) of each example, then the number
      of pieces.
    length: int64, number of tokens of each example.
    responses: int64, number of tokens with loss of each example.
    fields: each float32 [examples, K], 0 beyond an example's completions.
    token_fields: each float32, a number for every token in `tokens`; 0 on prompts.
    T: length of the longest completion, in tokens with loss.
  """

  tokens: np.ndarray
  loss: np.ndarray
  piece_start: np.ndarray
  group_start: np.ndarray
  length: np.ndarray
  responses: np.ndarray
  fields: Mapping[str, np.ndarray]
  token_fields: Mapping[str, np.ndarray]
  T: int


def build_store(examples: Sequence[Example]) -> TokenStore:
  """Concatenates the examples of a data set into flat arrays.

  Raises:
    ValueError: no examples, an empty prompt or completion (by uid), or examples whose
      data columns differ.
  """
  if not examples:
    raise ValueError(
      "examples: the data set is empty; see the audit for dropped records"
    )
  names = set(examples[0].fields)
  token_names = set(examples[0].token_fields)
  pieces = []
  masks = []
  for example in examples:
    if (set(example.fields), set(example.token_fields)) != (names, token_names):
      raise ValueError(
        f"{example.uid}: fields {sorted({*example.fields, *example.token_fields})}, "
        f"but {examples[0].uid} has {sorted(names | token_names)}; all examples need "
        "the same columns"
      )
    pieces.append(example.prompt)
    pieces += example.completions
    masks.append(np.zeros(len(example.prompt), bool))
    masks += example.masks or [np.ones(len(y), bool) for y in example.completions]
  size = np.fromiter(map(len, pieces), np.int64, len(pieces))
  counts = np.fromiter((1 + len(e.completions) for e in examples), np.int64)
  piece_start = np.concatenate([[0], size.cumsum()])
  group_start = np.concatenate([[0], counts.cumsum()])
  loss = np.concatenate(masks)
  responses = np.add.reduceat(np.append(loss, False), piece_start[:-1], dtype=np.int64)
  is_prompt = np.zeros(len(pieces), bool)
  is_prompt[group_start[:-1]] = True
  _check_pieces(examples, size, responses, is_prompt, group_start)
  K = int(counts.max()) - 1
  fields = {name: np.zeros((len(examples), K), np.float32) for name in sorted(names)}
  for name, column in fields.items():
    for row, example in enumerate(examples):
      column[row, : len(example.completions)] = example.fields[name]
  return TokenStore(
    tokens=np.concatenate(pieces).astype(np.int32, copy=False),
    loss=loss,
    piece_start=piece_start,
    group_start=group_start,
    length=np.add.reduceat(size, group_start[:-1]),
    responses=np.add.reduceat(responses, group_start[:-1]),
    fields=fields,
    token_fields={name: _token_column(examples, name) for name in sorted(token_names)},
    T=int(responses.max()),
  )


def _token_column(examples: Sequence[Example], name: str) -> np.ndarray:
  pieces = []
  for example in examples:
    pieces += [np.zeros(len(example.prompt)), *example.token_fields[name]]
  return np.concatenate(pieces).astype(np.float32)


def _check_pieces(examples, size, responses, is_prompt, group_start) -> None:
  bad = np.flatnonzero((size == 0) | (~is_prompt & (responses == 0)))
  if bad.size:
    example = examples[np.searchsorted(group_start, bad[0], "right") - 1]
    problem = "prompt has no tokens" if is_prompt[bad[0]] else "completion has no loss"
    raise ValueError(
      f"{example.uid}: {problem}; drop the record or give the tokenizer a BOS"
    )
