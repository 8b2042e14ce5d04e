"""How completions are drawn, as one value for every sampler: see `GenerationConfig`."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from xpo_jax.models.transformer import Model
from xpo_jax.types import Params


class Mixture(NamedTuple):
  """A second model beside the policy: tokens come from policy^(1 - share) ref^share.

  Normalised token by token, after both have been divided by the temperature; see
  `preference_games.mixture`. Nash-MD's opponent (Munos et al. 2023, arXiv:2312.00886)
  and the sampler of IPO-MD (Calandriello et al. 2024, arXiv:2403.08635). Or, where it
  is arithmetic, from (1 - share) policy + share ref: the teacher-mixed samples of
  MiniLLM (Gu et al. 2023, arXiv:2306.08543).

  Attributes:
    model: the reference, of `transformer.model`; its vocabulary is the policy's.
    params: of its decoder.
    share: its exponent or weight, in [0, 1]: 0 draws from the policy, 1 from the
      reference.
    arithmetic: whether probabilities are added; else their logarithms.
  """

  model: Model
  params: Params
  share: float
  arithmetic: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class GenerationConfig:
  """How the completions of a prompt are drawn.

  Attributes:
    max_completion_tokens: T, the longest completion, stop token included.
    completions: K, completions of each prompt.
    temperature: divides the logits, > 0.
    top_k: draw among the k likeliest tokens (and ties with the last).
    top_p: draw among the fewest likeliest tokens whose probability reaches p (and
      ties with the last); after top_k, if both are given.
    greedy: take the likeliest token. `logp_BKT` is still at `temperature`.
    exploration_temperature: draw at this temperature instead, to explore. `logp_BKT` is
      still at `temperature`.
    mixture: draw from a mixture with this model; top_k, top_p and greedy then
      are about the mixture. `logp_BKT` is still the policy's.
    stop_ids: tokens that end a completion; (): none. None: the tokenizer's EOS and the
      model's `Config.stop_ids`, for `generate.generate` alone, as the samplers see no
      tokenizer.
    num_tokens: ids from here on are not drawn; None: all rows of the embedding.
      `generate.generate` sets it to the size of a tokenizer that has fewer.

  Raises:
    ValueError: a number outside its range, or greedy=True with an option of sampling.
  """

  max_completion_tokens: int
  completions: int = 1
  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  greedy: bool = False
  exploration_temperature: float | None = None
  mixture: Mixture | None = None
  stop_ids: Sequence[int] | None = None
  num_tokens: int | None = None

  def __post_init__(self):
    sizes = {
      "completions": self.completions,
      "max_completion_tokens": self.max_completion_tokens,
      "num_tokens": 1 if self.num_tokens is None else self.num_tokens,
    }
    for name, size in sizes.items():
      if size < 1:
        raise ValueError(f"{name} is {size}; it must be at least 1")
    if not self.temperature > 0:
      raise ValueError(
        f"temperature is {self.temperature}; it must be > 0 (greedy=True takes the "
        "likeliest token)"
      )
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise ValueError(f"top_p is {self.top_p}; allowed: 0 < top_p <= 1, or None")
    if self.greedy and (self.top_k is not None or self.top_p is not None):
      raise ValueError(
        f"greedy=True takes one token: top_k={self.top_k} and top_p={self.top_p} must "
        "be None"
      )
    explores = self.exploration_temperature is not None
    if explores and not (self.exploration_temperature > 0 and not self.greedy):
      raise ValueError(
        f"exploration_temperature is {self.exploration_temperature}, greedy is "
        f"{self.greedy}; exploration_temperature must be > 0, and greedy=True draws "
        "nothing"
      )
    if self.mixture is not None and not 0 <= self.mixture.share <= 1:
      raise ValueError(
        f"mixture.share is {self.mixture.share}; it is the reference's exponent or "
        "weight, in [0, 1]"
      )
