"""The preference model of two answers: how its data are laid out, and how it is asked.

It reads prompt, one answer, EOS, the other answer, EOS; the scalar head before the last
EOS is the log odds that the answer shown first is the better one. `both_orders` lays
pairs out so for the objective `preference_model`; a `Preference` asks in both orders
and averages, so that which answer comes first changes nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy import special

from xpo_jax.data.tokenise import Example
from xpo_jax.feedback import _texts, protocol, reward_model
from xpo_jax.feedback.protocol import Preference, Scores
from xpo_jax.feedback.reward_model import RewardModel
from xpo_jax.types import Layout

BOTH_ORDERS = "xpo_jax.feedback.preference_model:both_orders"  # for `Data.transform`


def both_orders(examples: Sequence[Example], tokenizer: Any) -> list[Example]:
  """Pairs as the objective `preference_model` reads them; for `Data.transform`.

  Column 0 is the chosen answer and then the rejected one, column 1 the other order. An
  answer that truncation robbed of its EOS gets one, for it is what parts the two. Of a
  ranked list, the answer of rank i meets the one half a list below it: each answer is
  used once (of an odd list, the worst is not), and no pair is close; ties are left out.

  Args:
    examples: of layout PAIR or RANKED.
    tokenizer: its EOS parts the answers.

  Raises:
    ValueError: another layout.
  """
  return [
    Example(
      uid=pair.uid,
      prompt=pair.prompt,
      completions=(
        _joined(*pair.completions, tokenizer),
        _joined(*reversed(pair.completions), tokenizer),
      ),
      layout=Layout.PAIR,
    )
    for example in examples
    for pair in _pairs(example)
  ]


def of(held: RewardModel, *, batch: int = 32) -> Preference:
  """The Preference of a model in memory.

  Both orders are asked about (`protocol.both_orders`); see `objectives.preference`.

  Args:
    held: a preference model.
    batch: texts read at once; each question is two.
  """

  def preference(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    reading = (held.tokenizer, held.template, held.limits)
    sides = (_texts.examples(prompts, y, *reading) for y in (first, second))
    made = [_shown(a, b, held.tokenizer) for a, b in zip(*sides, strict=True)]
    return Scores(special.expit(reward_model.values(held, made, batch)))

  return protocol.both_orders(preference)


def preference(
  directory: str,
  *,
  batch: int = 32,
  compute_dtype: str = "float32",
  mesh: jax.sharding.Mesh | None = None,
) -> Preference:
  """The Preference of a saved model: `of` what `reward_model.load` reads."""
  kind = reward_model.PREFERENCE
  held = reward_model.load(directory, kind=kind, compute_dtype=compute_dtype, mesh=mesh)
  return of(held, batch=batch)


def _pairs(example: Example) -> list[Example]:
  if example.layout is Layout.PAIR:
    return [example]
  if example.layout is not Layout.RANKED:
    raise ValueError(
      f"{example.uid}: both_orders takes PAIR or RANKED, not {example.layout.name}"
    )
  reward_K = example.fields["reward"]
  order_K = np.argsort(-reward_K, kind="stable")
  half = len(order_K) // 2
  return [
    dataclasses.replace(
      example,
      uid=f"{example.uid}/{i}",
      completions=(example.completions[better], example.completions[worse]),
      layout=Layout.PAIR,
    )
    for i, (better, worse) in enumerate(
      zip(order_K[:half], order_K[half : 2 * half], strict=True)
    )
    if reward_K[better] > reward_K[worse]
  ]


def _shown(first: Example, second: Example, tokenizer: Any) -> Example:
  """Two examples of one prompt and one answer each as one text."""
  text = _joined(*first.completions, *second.completions, tokenizer)
  return dataclasses.replace(first, completions=(text,))


def _joined(first: np.ndarray, second: np.ndarray, tokenizer: Any) -> np.ndarray:
  eos = np.int32(tokenizer.eos_token_id)
  parts = [y if y[-1] == eos else np.append(y, eos) for y in (first, second)]
  return np.concatenate(parts)
