"""A tiny model and data set for the trainer's tests: shapes, nothing learned."""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from tests.train.tiny_runs import ADAPTED
from xpo_jax.data import collate, pack, synthetic_reviews
from xpo_jax.data.records import Demonstration, Pair
from xpo_jax.data.tokenise import Example
from xpo_jax.models import transformer
from xpo_jax.models.config import Config
from xpo_jax.train import loop
from xpo_jax.types import Layout, Params

# Every size is even, so that each axis can be split in two.
CONFIG = Config(
  vocab=32,
  width=8,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=4,
  mlp_width=16,
  positions=64,
  remat="none",
)


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity
class Tiny:
  """A model with two sets of parameters, and pairs and lists to train it on."""

  model: transformer.Model
  policy: Params
  ref: Params
  pairs: list[Example]
  lists: list[Example]

  def batches(
    self, layout: Layout, microbatches: int = 1, seed: int = 0
  ) -> pack.Batches:
    """The pairs, or lists, in a layout, 8 rows of 40 tokens a step."""
    source = self.lists if layout is Layout.RANKED else self.pairs
    examples = collate.to_layout(source, layout, seed=0)
    sizes = pack.PackSizes(8, microbatches=microbatches, row_length=40)
    return pack.plan(examples, sizes, seed=seed)


@functools.cache
def _tiny() -> Tiny:
  rng = np.random.default_rng(0)

  def text(low: int, high: int) -> np.ndarray:
    return rng.integers(3, CONFIG.vocab, rng.integers(low, high)).astype(np.int32)

  pairs = [
    Example(f"pair {i}", text(2, 5), (text(1, 7), text(1, 7)), Layout.PAIR)
    for i in range(48)
  ]
  lists = [
    Example(
      f"list {i}",
      text(2, 5),
      tuple(text(1, 7) for _ in range(3)),
      Layout.RANKED,
      fields={"reward": rng.normal(size=3).astype(np.float32)},
    )
    for i in range(32)
  ]
  model = transformer.model(CONFIG)
  policy, ref = (model.init(jax.random.key(seed)) for seed in (0, 1))
  # Far enough apart that log-ratios, and what hangs on them, are not all about 0.
  policy, ref = (jax.tree.map(lambda x: 2 * x, params) for params in (policy, ref))
  return Tiny(model, {"lm": policy}, {"lm": ref}, pairs, lists)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
  """See `Tiny`."""
  return _tiny()


@pytest.fixture(scope="session")
def datasets() -> dict[str, list]:
  """Records by name, for `loop.train`."""
  texts = synthetic_reviews.generate(120, seed=0)
  pairs = [
    Pair(f"pair {i}", prompt, good, texts[i + 60][1])
    for i, (prompt, good) in enumerate(texts[:40])
  ]
  demos = [Demonstration(f"text {i}", *text) for i, text in enumerate(texts[:40])]
  return {"pairs": pairs, "demos": demos}


class Adapted(NamedTuple):
  """The finished run `ADAPTED`.

  Attributes:
    run_dir: its directory.
    result: what `loop.train` returned.
    base: the decoder that its adapters are added to.
  """

  run_dir: Path
  result: loop.Result
  base: Params


@pytest.fixture(scope="session")
def adapted(datasets, tmp_path_factory) -> Adapted:
  """See `Adapted`."""
  run_dir = tmp_path_factory.mktemp("adapted") / "run"
  result = loop.train(ADAPTED, run_dir, datasets=datasets, say=lambda text: None)
  assert result.finished and result.steps == 6
  key = jax.random.fold_in(jax.random.key(ADAPTED.seed), 0)
  return Adapted(run_dir, result, transformer.model(ADAPTED.start.model).init(key))
