"""Slots that are refilled draw what whole batches draw, and the counts are right."""

import functools

import jax
import numpy as np
import pytest

from xpo_jax.models import continuous_batching, sample, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.generation_config import GenerationConfig, Mixture

CONFIG = Config(
  vocab=150, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=24
)
LENGTHS = (3, 1, 2, 5, 4, 2, 1, 3, 5)
K, T = 2, 7
STOP = list(range(100, 130))  # about a fifth of the draws


@functools.cache
def params(seed=0):
  start = jax.jit(transformer.model(CONFIG).init)(jax.random.key(seed))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + 0.15 * rng.standard_normal(x.shape, np.float32), start
  )


def draw(fn=continuous_batching.sample, lengths=LENGTHS, key=7, engine=None, **changes):
  rng = np.random.default_rng(0)
  padded = sample.pad([rng.integers(0, 150, n) for n in lengths], 5)
  options = dict(completions=K, max_completion_tokens=T, stop_ids=STOP, top_k=60)
  if fn is continuous_batching.sample:
    engine = {"slots": 5} | (engine or {})
  return fn(
    transformer.model(CONFIG),
    params(),
    sample.PromptBatch(*padded, 10 + np.arange(len(lengths))),
    config=GenerationConfig(**options | changes),
    key=jax.random.key(key),
    **engine or {},
  )


@functools.cache
def refilled():
  return draw()


@functools.cache
def whole():
  return jax.device_get(draw(sample.sample))


def assert_same(ours, theirs):
  for name in ("tokens_BKT", "mask_BKT", "length_BK", "ended_BK"):
    np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
  for name in ("logp_BKT", "proposal_logp_BKT"):
    np.testing.assert_allclose(
      getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=0, err_msg=name
    )


def test_draws_what_a_whole_batch_draws():
  drawn, work = refilled()
  assert_same(drawn, whole())
  # Every kind is seen: ended at once, later, and cut; and slots were refilled.
  assert {1, T} < set(drawn.length_BK.reshape(-1)) and not drawn.ended_BK.all()
  assert work.refills > 3


def test_one_completion_a_prompt_gives_the_same_bits():
  # The same shapes in every product: as many slots as the batch has rows.
  few = dict(lengths=LENGTHS[:5], completions=1)
  for ours, theirs in zip(
    jax.tree.leaves(draw(**few)[0]),
    jax.tree.leaves(draw(sample.sample, **few)),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)


def simulated(length_BK, places, freed):
  """Steps, groups read and refills of the rule, from the lengths alone."""
  group = -(-places // K)
  queue = [
    [n - 1 for n in length_BK[at : at + group].reshape(-1) if n > 1]
    for at in range(0, len(length_BK), group)
  ]
  ready, running, steps, reads, refills = [], [], 0, 0, 0
  while True:
    while len(running) < places and (ready or queue):
      if not ready:
        ready, reads = queue.pop(0), reads + 1
        continue
      taken = min(places - len(running), len(ready))
      running, ready, refills = running + ready[:taken], ready[taken:], refills + 1
    if not running:
      return steps, reads, refills
    wanted = freed if ready or queue else places
    while places - len(running) < wanted:
      running, steps = [n - 1 for n in running if n > 1], steps + 1


@pytest.mark.parametrize("freed", [1, 3, 5])
def test_work_is_what_the_lengths_make_of_it(freed):
  drawn, work = draw(engine={"freed": freed})
  assert_same(drawn, whole())
  steps, reads, refills = simulated(drawn.length_BK, 5, freed)
  assert (work.steps, work.reads, work.refills) == (steps, reads, refills)
  used = drawn.length_BK.sum() - drawn.length_BK.size
  assert work.idle == pytest.approx(1 - used / (5 * steps))


def test_idle_share_of_a_batch():
  # Steps are 3; they need 3, 0 and 1 of nine.
  assert continuous_batching.idle(np.array([[4, 1, 2]])) == pytest.approx(5 / 9)
  assert continuous_batching.idle(np.array([[1, 1]])) == 0


def test_nothing_is_decoded_where_all_end_at_once():
  drawn, work = draw(stop_ids=range(150))
  assert (drawn.length_BK == 1).all() and drawn.ended_BK.all()
  assert work == continuous_batching.Work(steps=0, idle=0.0, reads=3, refills=0)


def test_mixture_is_that_of_whole_batches():
  mixture = Mixture(transformer.model(CONFIG), params(1), 0.4)
  drawn, _ = draw(mixture=mixture)
  assert_same(drawn, draw(sample.sample, mixture=mixture))
  assert (drawn.tokens_BKT != whole().tokens_BKT).any()


def test_any_number_of_prompts_compiles_once():
  refilled()
  programs = (
    continuous_batching._read,
    continuous_batching._empty,
    continuous_batching._fill,
    continuous_batching._advance,
  )
  before = [program._cache_size() for program in programs]
  drawn, _ = draw(lengths=LENGTHS * 2, key=8, top_k=9, engine={"freed": 2})
  assert drawn.tokens_BKT.shape == (18, K, T)
  assert [program._cache_size() for program in programs] == before


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"engine": {"slots": 0}}, "slots is 0; it must be at least 1"),
    ({"engine": {"freed": 0}}, r"freed is 0; allowed: 1 to 5 \(slots\)"),
    ({"engine": {"freed": 6}}, "freed is 6"),
    ({"temperature": 0.0}, "temperature is 0.0"),
  ],
)
def test_bad_input_is_refused_by_name(changes, words):
  with pytest.raises(ValueError, match=words):
    draw(**changes)
