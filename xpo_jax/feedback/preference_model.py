"""Preference model of two completions: its data format and its `Preference`.

The input is prompt, first completion, EOS, second completion, EOS; the scalar head at
the last EOS is the log odds that the first completion is preferred. As EOS also
separates, a completion that was cut reads like one that ended.
`both_orders` formats pairs for the objective `preference_model`; the `Preference`
averages both orders, so that it does not depend on the order.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy import special

from xpo_jax.data.tokenise import Example
from xpo_jax.feedback import protocol, reward_model, tokenised_texts
from xpo_jax.feedback.protocol import Preference, Scores
from xpo_jax.feedback.reward_model import RewardModel
from xpo_jax.types import Layout

BOTH_ORDERS = "xpo_jax.feedback.preference_model:both_orders"  # for `Data.transform`


def both_orders(examples: Sequence[Example], tokenizer: Any) -> list[Example]:
  """Formats pairs for the objective `preference_model`; for `Data.transform`.

  Column 0 is the chosen completion followed by the rejected one, column 1 the other
  order. A truncated completion gets an EOS, which separates the two. In a ranked list,
  the completion of rank i is paired with the one half a list below: each completion is
  used once (of an odd list, the worst is not) and no pair is close in rank; ties are
  left out.

  Args:
    examples: of layout PAIR or RANKED.
    tokenizer: its EOS separates the completions.

  Raises:
    ValueError: another layout.
  """
  return [
    Example(
      uid=pair.uid,
      prompt=pair.prompt,
      completions=(
        _concatenate(*pair.completions, tokenizer),
        _concatenate(*reversed(pair.completions), tokenizer),
      ),
      layout=Layout.PAIR,
    )
    for example in examples
    for pair in _pairs(example)
  ]


def to_preference(preference_model: RewardModel, *, batch: int = 32) -> Preference:
  """Converts a preference model in memory to a Preference.

  Both orders are queried (`protocol.both_orders`); see `objectives.preference`.

  Args:
    preference_model: of kind `reward_model.PREFERENCE`.
    batch: texts per forward pass; each query is two texts.
  """

  def preference(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    first_examples, second_examples = (
      tokenised_texts.to_examples(
        prompts,
        completions,
        preference_model.tokenizer,
        template=preference_model.template,
        limits=preference_model.limits,
      )
      for completions in (first, second)
    )
    pairs = [
      _concatenate_pair(a, b, preference_model.tokenizer)
      for a, b in zip(first_examples, second_examples, strict=True)
    ]
    return Scores(
      special.expit(reward_model.head_values(preference_model, pairs, batch))
    )

  return protocol.both_orders(preference)


def preference(
  directory: str,
  *,
  batch: int = 32,
  compute_dtype: str = "float32",
  mesh: jax.sharding.Mesh | None = None,
) -> Preference:
  """Loads a saved preference model (`reward_model.load`) as a Preference."""
  loaded = reward_model.load(
    directory, kind=reward_model.PREFERENCE, compute_dtype=compute_dtype, mesh=mesh
  )
  return to_preference(loaded, batch=batch)


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


def _concatenate_pair(first: Example, second: Example, tokenizer: Any) -> Example:
  """Merges two examples of one prompt and one completion each into one example."""
  text = _concatenate(*first.completions, *second.completions, tokenizer)
  return dataclasses.replace(first, completions=(text,))


def _concatenate(first: np.ndarray, second: np.ndarray, tokenizer: Any) -> np.ndarray:
  eos = np.int32(tokenizer.eos_token_id)
  parts = [y if (y[-1:] == eos).any() else np.append(y, eos) for y in (first, second)]
  return np.concatenate(parts)
