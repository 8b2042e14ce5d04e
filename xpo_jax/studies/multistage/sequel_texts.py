"""Text of another grammar than the reviews': what a policy may forget.

Which part of a film follows which, always the same: the words are the reviews', and
none of them praises or blames.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from xpo_jax.config.data import Prompts
from xpo_jax.data import records
from xpo_jax.data.records import Demonstration
from xpo_jax.train import loading

_PARTS = (
  "acting plot script dialogue ending opening music camera pace editing setting cast"
).split()
_KINDS = "film movie noir western musical drama sequel remake cartoon epic".split()


def learned(num_texts: int) -> list[Demonstration]:
  """So many rows of the three quarters of the grammar that are not held out."""
  rest = [at for at in _grammar() if sum(at) % 4]
  drawn = np.random.default_rng(0).integers(len(rest), size=num_texts)
  return [_row(f"other {i}", *rest[n]) for i, n in enumerate(drawn)]


def held_out() -> list[Demonstration]:
  """A row of each prompt that `learned` never draws."""
  held = [at for at in _grammar() if sum(at) % 4 == 0]
  return [_row(f"held out {i}", *at) for i, at in enumerate(held)]


def with_reviews(reviews: Prompts, num_texts: int) -> list[Demonstration]:
  """Reviews and the other text in turn, `num_texts` of each.

  Args:
    reviews: where texts are read from, as demonstrations.
    num_texts: of either.
  """
  rows = loading.load(reviews, reviews, {}).records[:num_texts]
  pairs = zip(rows, learned(num_texts), strict=False)
  return list(itertools.chain.from_iterable(pairs))


def _grammar() -> Iterator[tuple[int, int]]:
  return itertools.product(range(len(_PARTS)), range(len(_KINDS)))


def _row(uid: str, first: int, kind: int) -> records.Demonstration:
  one, two, three, four = (_PARTS[(first + k) % len(_PARTS)] for k in range(4))
  prompt = f"in the {_KINDS[kind]} the {one} and"
  return Demonstration(uid, prompt, f" the {two}, the {three}, the {four}.")
