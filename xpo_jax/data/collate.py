"""From the kind of feedback a file holds to the layout an objective wants.

| from | to | rule |
|---|---|---|
| any | the same | unchanged |
| PAIR | DEMO | the chosen completion |
| PAIR | RATED | two rows: chosen desirable, reward 1; rejected not, reward 0 |
| RANKED | DEMO | the completion of highest reward |
| RANKED | PAIR | highest reward against lowest |
| RANKED | RATED | one row per completion |
| PAIR, RANKED, RATED | RATED_MISMATCHED | RATED, then `mismatched` |
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from xpo_jax.data.tokenise import Example
from xpo_jax.types import Layout


def to_layout(
  examples: Sequence[Example], layout: Layout, seed: int = 0
) -> list[Example]:
  """Rearranges examples into `layout`.

  Args:
    examples: examples that all have one layout.
    layout: the layout wanted (`objective.layout`).
    seed: data seed; only RATED_MISMATCHED draws with it.

  Returns:
    Examples of that layout, in the order of the input.

  Raises:
    ValueError: mixed layouts, or no rule leads from the one to the other.
  """
  have = {example.layout for example in examples}
  if len(have) > 1:
    names = sorted(have_one.name for have_one in have)
    raise ValueError(f"examples mix layouts {names}; make one data set of each")
  if have <= {layout}:
    return list(examples)
  (source,) = have
  if (source, layout) in _RULES:
    rule = _RULES[source, layout]
    return [made for example in examples for made in rule(example)]
  if layout is Layout.RATED_MISMATCHED and source is not Layout.DEMO:
    return mismatched(to_layout(examples, Layout.RATED), seed)
  reach = sorted(to.name for start, to in _RULES if start is source)
  raise ValueError(
    f"layout: the data are {source.name}, the objective needs {layout.name}; "
    f"from {source.name} there is {reach or 'no other layout'}"
  )


def mismatched(examples: Sequence[Example], seed: int) -> list[Example]:
  """Adds column 1: the answer to another prompt, for KTO's reference point.

  The answers of column 1 are a derangement by prompt of those of column 0: each is
  used once and never beside its own prompt. Groups of equal prompts are laid end to
  end in random order and rotated by the size of the largest group.

  Args:
    examples: K=1 examples.
    seed: fixes the derangement, so that its reference log-probs can be cached.

  Returns:
    K=2 examples; data columns of column 1 are 0.

  Raises:
    ValueError: one prompt holds more than half of the examples.
  """
  prompts: dict[bytes, int] = {}
  group = np.array(
    [prompts.setdefault(e.prompt.tobytes(), len(prompts)) for e in examples]
  )
  rng = np.random.default_rng(seed)
  line = np.lexsort((rng.random(len(group)), rng.permutation(len(prompts))[group]))
  shift = int(np.bincount(group).max())
  if 2 * shift > len(examples):
    raise ValueError(
      f"mismatched answers: one prompt holds {shift} of {len(examples)} examples, so "
      "some must be paired with their own prompt; add examples of other prompts"
    )
  other = np.empty(len(examples), np.int64)
  other[line] = np.roll(line, -shift)
  return [_beside(a, examples[b]) for a, b in zip(examples, other, strict=True)]


def _beside(example: Example, other: Example) -> Example:
  masks = None
  if example.masks is not None or other.masks is not None:
    masks = (_mask(example, 0), _mask(other, 0))
  return dataclasses.replace(
    example,
    completions=(example.completions[0], other.completions[0]),
    layout=Layout.RATED_MISMATCHED,
    masks=masks,
    fields={
      name: np.append(x_K, x_K.dtype.type(0)) for name, x_K in example.fields.items()
    },
    token_fields={},  # they are of column 0 alone
  )


def _mask(example: Example, column: int) -> np.ndarray:
  if example.masks is None:
    return np.ones(len(example.completions[column]), bool)
  return example.masks[column]


def _take(
  example: Example, columns: Sequence[int], layout: Layout, suffix: str = ""
) -> Example:
  """The example with some of its columns."""
  return Example(
    uid=example.uid + suffix,
    prompt=example.prompt,
    completions=tuple(example.completions[k] for k in columns),
    layout=layout,
    masks=None if example.masks is None else tuple(example.masks[k] for k in columns),
    fields={name: x_K[list(columns)] for name, x_K in example.fields.items()},
    token_fields={
      name: tuple(x[k] for k in columns) for name, x in example.token_fields.items()
    },
  )


def _chosen(example: Example) -> list[Example]:
  return [_take(example, [0], Layout.DEMO)]


def _thumbs(example: Example) -> list[Example]:
  rows = []
  for column, name in enumerate(("chosen", "rejected")):
    row = _take(example, [column], Layout.RATED, f"/{name}")
    thumb_K = np.array([1 - column], np.float32)
    # A reward that the pair brings stays; without one it is the thumb.
    fields = {"reward": thumb_K, **row.fields, "desirable": thumb_K}
    rows.append(dataclasses.replace(row, fields=fields))
  return rows


def _reward(example: Example) -> np.ndarray:
  if "reward" not in example.fields:
    raise ValueError(
      f"{example.uid}: field 'reward' is missing; a ranked list needs it"
    )
  return example.fields["reward"]


def _best(example: Example) -> list[Example]:
  return [_take(example, [int(_reward(example).argmax())], Layout.DEMO)]


def _best_and_worst(example: Example) -> list[Example]:
  reward_K = _reward(example)
  best, worst = int(reward_K.argmax()), int(reward_K.argmin())
  if reward_K[best] == reward_K[worst]:
    raise ValueError(
      f"{example.uid}: all {len(reward_K)} rewards are {reward_K[best]}, so no answer "
      "is preferred; drop the row"
    )
  return [_take(example, [best, worst], Layout.PAIR)]


def _each(example: Example) -> list[Example]:
  columns = range(len(example.completions))
  return [_take(example, [k], Layout.RATED, f"/{k}") for k in columns]


_RULES = {
  (Layout.PAIR, Layout.DEMO): _chosen,
  (Layout.PAIR, Layout.RATED): _thumbs,
  (Layout.RANKED, Layout.DEMO): _best,
  (Layout.RANKED, Layout.PAIR): _best_and_worst,
  (Layout.RANKED, Layout.RATED): _each,
}
