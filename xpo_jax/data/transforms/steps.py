"""Prepares pairs of steps that more text would follow: Step-DPO's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpo_jax.data.tokenise import Example


def open_ended(examples: Sequence[Example], tokenizer: Any) -> list[Example]:
  """Takes the EOS off every completion; for `Data.transform`.

  A step is not the end of a solution: with an EOS, the pair would also compare the
  probability of ending there. Lai et al. 2024 (Step-DPO), arXiv:2406.18629, whose code
  adds none. A completion of which nothing else carries loss keeps it.

  Args:
    examples: of any layout.
    tokenizer: its EOS is taken off.
  """
  return [_open_ended(example, tokenizer.eos_token_id) for example in examples]


def _open_ended(example: Example, eos: int) -> Example:
  masks = example.masks or tuple(np.ones(len(x), bool) for x in example.completions)
  ends = [
    len(tokens) - int(tokens[-1] == eos and mask[:-1].any())
    for tokens, mask in zip(example.completions, masks, strict=True)
  ]

  def cut(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(x[:end] for x, end in zip(arrays, ends, strict=True))

  return dataclasses.replace(
    example,
    completions=cut(example.completions),
    masks=None if example.masks is None else cut(example.masks),
    token_fields={name: cut(arrays) for name, arrays in example.token_fields.items()},
  )
