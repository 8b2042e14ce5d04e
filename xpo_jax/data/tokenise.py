"""Records to tokens: one template, one boundary check, one truncation rule."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from xpo_jax.types import Layout


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt group in tokens.

  Attributes:
    uid: names the record it came from (file and line, or its own id).
    prompt: int32 [P], BOS included where the tokenizer has one.
    completions: K arrays int32 [T_k], EOS included unless truncated.
    layout: what the completions mean.
    masks: K boolean arrays [T_k], True where there is loss; None: everywhere.
    fields: data columns, each float32 [K]: "reward", "desirable".
  """

  uid: str
  prompt: np.ndarray
  completions: tuple[np.ndarray, ...]
  layout: Layout
  masks: tuple[np.ndarray, ...] | None = None
  fields: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def tokens(self) -> int:
    """Tokens of the group in a row: the prompt once, each completion once."""
    return len(self.prompt) + sum(map(len, self.completions))
