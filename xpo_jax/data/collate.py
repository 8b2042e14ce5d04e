"""Converts examples from the layout of their data to the layout of an objective.

| from | to | rule |
|---|---|---|
| any | the same | unchanged |
| PAIR | DEMO | the chosen completion |
| PAIR | RATED | two examples: chosen (desirable, reward 1), rejected (not, reward 0) |
| RANKED | DEMO | the completion of highest reward |
| RANKED | PAIR | highest reward against lowest |
| RANKED | RATED | one example per completion |
| PAIR, RANKED, RATED | RATED_MISMATCHED | RATED, then `add_mismatched` |

Others are asked for: `transforms.conversions`.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from xpo_jax.data import token_store
from xpo_jax.data.token_store import StoredExamples
from xpo_jax.data.tokenise import Example
from xpo_jax.types import Layout

_OF_PAIRS = frozenset({"margin"})  # data columns without a meaning in other layouts


def to_layout(
  examples: Sequence[Example], layout: Layout, seed: int = 0
) -> Sequence[Example]:
  """Converts examples to `layout`.

  Args:
    examples: examples of one layout.
    layout: the target (`objective.layout`).
    seed: data seed; only RATED_MISMATCHED uses it.

  Returns:
    Examples of that layout, in the order of the input; in files where those are
    (`token_store.StoredExamples`).

  Raises:
    ValueError: mixed layouts, or no rule for this pair of layouts.
  """
  if isinstance(examples, StoredExamples):
    sources = {examples.layout}
  else:
    sources = {example.layout for example in examples}
  if len(sources) > 1:
    names = sorted(source.name for source in sources)
    raise ValueError(f"examples mix layouts {names}; make one data set of each")
  if sources <= {layout}:
    return examples if isinstance(examples, StoredExamples) else list(examples)
  (source,) = sources
  if (source, layout) in _RULES:
    rule = _RULES[source, layout]
    converted = (made for example in examples for made in rule(example))
    return token_store.collected(converted, examples)
  if layout is Layout.RATED_MISMATCHED and source is not Layout.DEMO:
    return add_mismatched(to_layout(examples, Layout.RATED), seed)
  helpful = ""
  if name := _HELPFUL.get((source, layout)):
    helpful = f"; --data.conversion {name} makes such data of them"
  targets = sorted(to.name for start, to in _RULES if start is source)
  raise ValueError(
    f"layout: the data are {source.name}, the objective needs {layout.name}; "
    f"{source.name} converts to {targets or 'no other layout'}{helpful}"
  )


def add_mismatched(examples: Sequence[Example], seed: int) -> Sequence[Example]:
  """Adds column 1: a completion of another prompt, for KTO's reference point.

  The completions of column 1 are a derangement by prompt of those of column 0: each is
  used once and never with its own prompt. Groups of equal prompts are concatenated in
  random order and rotated by the size of the largest group.

  Args:
    examples: K=1 examples.
    seed: determines the derangement, so that its reference log-probs can be cached.

  Returns:
    K=2 examples; data columns of column 1 are 0.

  Raises:
    ValueError: one prompt has more than half of the examples.
  """
  prompts: dict[bytes, int] = {}
  digests = (hashlib.sha256(e.prompt.tobytes()).digest()[:16] for e in examples)
  group = np.fromiter(
    (prompts.setdefault(digest, len(prompts)) for digest in digests), np.int64
  )
  rng = np.random.default_rng(seed)
  order = np.lexsort((rng.random(len(group)), rng.permutation(len(prompts))[group]))
  shift = int(np.bincount(group).max())
  if 2 * shift > len(examples):
    raise ValueError(
      f"mismatched completions: one prompt has {shift} of {len(examples)} examples, so "
      "some must be paired with their own prompt; add examples of other prompts"
    )
  other = np.empty(len(examples), np.int64)
  other[order] = np.roll(order, -shift)
  mismatched = (
    _with_column1(example, examples[index])
    for example, index in zip(examples, other, strict=True)
  )
  return token_store.collected(mismatched, examples)


def _with_column1(example: Example, other: Example) -> Example:
  masks = None
  if example.masks is not None or other.masks is not None:
    masks = (mask(example, 0), mask(other, 0))
  return dataclasses.replace(
    example,
    completions=(example.completions[0], other.completions[0]),
    layout=Layout.RATED_MISMATCHED,
    masks=masks,
    fields={
      name: np.append(x_K, x_K.dtype.type(0)) for name, x_K in example.fields.items()
    },
    token_fields={},  # defined for column 0 only
  )


def mask(example: Example, column: int) -> np.ndarray:
  """The loss mask of a completion, `[T_k]`, also where the example has none."""
  if example.masks is None:
    return np.ones(len(example.completions[column]), bool)
  return example.masks[column]


def select(
  example: Example, columns: Sequence[int], layout: Layout, suffix: str = ""
) -> Example:
  """Returns the example with some of its columns, in another layout.

  Args:
    example: the example.
    columns: of K.
    layout: of those columns.
    suffix: of the uid.
  """
  fields = {
    name: x_K[list(columns)]
    for name, x_K in example.fields.items()
    if layout is Layout.PAIR or name not in _OF_PAIRS
  }
  return Example(
    uid=example.uid + suffix,
    prompt=example.prompt,
    completions=tuple(example.completions[k] for k in columns),
    layout=layout,
    masks=None if example.masks is None else tuple(example.masks[k] for k in columns),
    fields=fields,
    token_fields={
      name: tuple(x[k] for k in columns) for name, x in example.token_fields.items()
    },
  )


def _chosen(example: Example) -> list[Example]:
  return [select(example, [0], Layout.DEMO)]


def _chosen_and_rejected(example: Example) -> list[Example]:
  rated = []
  for column, name in enumerate(("chosen", "rejected")):
    single = select(example, [column], Layout.RATED, f"/{name}")
    desirable_K = np.array([1 - column], np.float32)
    # The pair's own rewards take precedence; the default is the desirable bit.
    fields = {"reward": desirable_K, **single.fields, "desirable": desirable_K}
    rated.append(dataclasses.replace(single, fields=fields))
  return rated


def _reward(example: Example) -> np.ndarray:
  if "reward" not in example.fields:
    raise ValueError(
      f"{example.uid}: field 'reward' is missing; a ranked list needs it"
    )
  return example.fields["reward"]


def _best(example: Example) -> list[Example]:
  return [select(example, [int(_reward(example).argmax())], Layout.DEMO)]


def _best_and_worst(example: Example) -> list[Example]:
  reward_K = _reward(example)
  best, worst = int(reward_K.argmax()), int(reward_K.argmin())
  if reward_K[best] == reward_K[worst]:
    raise ValueError(
      f"{example.uid}: all {len(reward_K)} rewards are {reward_K[best]}, so no "
      "completion is preferred; drop the record"
    )
  return [select(example, [best, worst], Layout.PAIR)]


def _one_per_completion(example: Example) -> list[Example]:
  columns = range(len(example.completions))
  return [select(example, [k], Layout.RATED, f"/{k}") for k in columns]


# What `transforms.conversions` has for layouts without a rule.
_HELPFUL = {
  (Layout.RATED, Layout.PAIR): "lists_by_prompt",
  (Layout.RATED, Layout.RANKED): "lists_by_prompt",
  (Layout.PAIR, Layout.RANKED): "lists_of_two",
}
_RULES = {
  (Layout.PAIR, Layout.DEMO): _chosen,
  (Layout.PAIR, Layout.RATED): _chosen_and_rejected,
  (Layout.RANKED, Layout.DEMO): _best,
  (Layout.RANKED, Layout.PAIR): _best_and_worst,
  (Layout.RANKED, Layout.RATED): _one_per_completion,
}
