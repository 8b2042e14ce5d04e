"""Texts depend on key, row and parameters, not on batches, slots, or devices."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from xpo_jax.data import records
from xpo_jax.models import generate, sample, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.generate import Batching
from xpo_jax.models.generation_config import GenerationConfig, Mixture
from xpo_jax.sharding import mesh as meshes

CONFIG = Config(
  vocab=150, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=24
)
MODEL = transformer.model(CONFIG)
LENGTHS = (3, 1, 2, 5, 4, 2, 1, 3, 5)
PROMPTS = [
  np.random.default_rng(n).integers(1, 150, length) for n, length in enumerate(LENGTHS)
]
K, T = 2, 7
STOP = tuple(range(100, 130))  # about a fifth of the draws
GENERATION = GenerationConfig(T, completions=K, top_k=60, stop_ids=STOP)


class Words:
  """Stands in for a tokenizer: a token is a word, words are joined by a blank."""

  def __init__(self, eos_token_id=None, size=MODEL.config.vocab):
    self.eos_token_id, self.size = eos_token_id, size

  def __len__(self):
    return self.size

  def decode(self, ids, skip_special_tokens):
    assert skip_special_tokens
    return " ".join(f"w{i}" for i in ids if i != self.eos_token_id)


@functools.cache
def params(seed=0):
  start = jax.jit(MODEL.init)(jax.random.key(seed))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + 0.15 * rng.standard_normal(x.shape, np.float32), start
  )


def run(batching=Batching(), config=GENERATION, tokenizer=Words(), **changes):
  arguments = {"prompts": PROMPTS, "key": jax.random.key(7)} | changes
  return generate.generate(
    MODEL, params(), tokenizer=tokenizer, config=config, batching=batching, **arguments
  )


@functools.cache
def whole():
  return run()


def assert_same(ours, theirs):
  assert ours.prompts == theirs.prompts and ours.texts_BK == theirs.texts_BK
  for name in ("tokens_BKT", "length_BK", "ended_BK"):
    np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
  np.testing.assert_allclose(ours.logp_BKT, theirs.logp_BKT, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [4, 16])
def test_batch_size_changes_no_text(batch_size):
  assert_same(run(Batching(batch_size, prompt_width=6)), whole())
  assert not whole().ended_BK.all() and {1, T} < set(whole().length_BK.flat)


def test_completions_go_with_the_row_number():
  some = run(prompts=PROMPTS[3:7], row_B=range(3, 7))
  assert some.texts_BK == whole().texts_BK[3:7]
  assert run(prompts=PROMPTS[3:7]).texts_BK != some.texts_BK


def test_last_batch_is_filled_with_its_last_prompt(monkeypatch):
  batches, draw = [], sample.sample

  def watched(model, params, prompts, **how):
    batches.append(prompts)
    return draw(model, params, prompts, **how)

  monkeypatch.setattr(sample, "sample", watched)
  drawn = run(Batching(4), row_B=10 + np.arange(9))
  rows = [batch.row_B.tolist() for batch in batches]
  assert rows == [[10, 11, 12, 13], [14, 15, 16, 17], [18] * 4]
  for batch in batches:
    assert batch.prompt_BP.shape == (4, 5)
  np.testing.assert_array_equal(batches[-1].prompt_BP, [PROMPTS[8]] * 4)
  assert len(drawn.texts_BK) == len(drawn.tokens_BKT) == 9


def test_refilled_slots_draw_what_batches_draw_in_fewer_steps():
  refilled = run(Batching(slots=6))
  assert_same(refilled, whole())
  used = (whole().length_BK - 1).sum()
  assert whole().slot_steps == 9 * K * (T - 1)
  assert used < refilled.slot_steps < whole().slot_steps
  steps = [run(Batching(4)).length_BK[at : at + 4].max() - 1 for at in (0, 4, 8)]
  assert run(Batching(4)).slot_steps == 4 * K * sum(steps)


def test_text_is_what_both_together_add_to_the_prompt():
  drawn = whole()
  for b, prompt in enumerate(PROMPTS):
    assert drawn.prompts[b] == Words().decode(prompt, True)
    for k, tokens in enumerate(drawn.unpadded(drawn.tokens_BKT)[b]):
      tokens = tokens[: len(tokens) - drawn.ended_BK[b, k]]  # a stop token is no text
      both = Words().decode([*prompt, *tokens], True)
      assert drawn.prompts[b] + drawn.texts_BK[b][k] == both
      assert drawn.texts_BK[b][k] != Words().decode(tokens, True) or not len(tokens)


def test_text_that_no_stop_token_ended_is_marked_as_cut():
  drawn = whole()
  cut_BK = [[records.is_cut(text) for text in texts] for texts in drawn.texts_BK]
  np.testing.assert_array_equal(cut_BK, ~drawn.ended_BK)


def test_text_starts_where_it_changes_the_prompts_last_character():
  class Joined(Words):
    def decode(self, ids, skip_special_tokens):
      return "x" * (len(ids) - 1) + ("?" if len(ids) == 2 else "!")

  drawn = run(
    config=GenerationConfig(1, stop_ids=()), tokenizer=Joined(), prompts=[[1]]
  )
  assert (drawn.prompts, drawn.texts_BK) == (("!",), (("x?",),))


@pytest.mark.parametrize("greedy", [False, True])
def test_ids_that_the_tokenizer_does_not_have_are_never_drawn(greedy):
  config = GenerationConfig(8, completions=K, stop_ids=(), greedy=greedy)
  free, limited = (run(config=config, tokenizer=Words(size=n)) for n in (150, 20))
  assert free.tokens_BKT.max() >= 20 > limited.tokens_BKT.max()
  with pytest.raises(ValueError, match="num_tokens is 0"):
    GenerationConfig(8, num_tokens=0)


def test_log_prob_of_a_limited_draw_is_the_policys_own():
  """Over all rows of the embedding, as training computes it."""
  config = GenerationConfig(1, completions=8, stop_ids=())
  free, limited = (run(config=config, tokenizer=Words(size=n)) for n in (150, 140))
  same = free.tokens_BKT == limited.tokens_BKT
  assert same.any() and not same.all()
  np.testing.assert_allclose(free.logp_BKT[same], limited.logp_BKT[same], rtol=1e-6)


def test_stop_ids_of_the_model_end_a_completion_beside_eos():
  config = GenerationConfig(T, completions=K)
  drawn = run(config=config, tokenizer=Words(eos_token_id=3))
  seen = int(drawn.tokens_BKT[0, 0, 1])
  more = transformer.model(dataclasses.replace(MODEL.config, stop_ids=(seen,)))
  stopped = generate.generate(
    more,
    params(),
    PROMPTS,
    tokenizer=Words(eos_token_id=3),
    config=config,
    key=jax.random.key(7),
  )
  assert stopped.length_BK[0, 0] <= 2 and stopped.ended_BK[0, 0]
  assert stopped.tokens_BKT[0, 0, 0] == drawn.tokens_BKT[0, 0, 0]


def test_eos_of_the_tokenizer_ends_a_completion_and_the_limit_cuts_it():
  endless = run(config=dataclasses.replace(GENERATION, stop_ids=()))
  assert (endless.length_BK == T).all() and not endless.ended_BK.any()
  eos = int(endless.tokens_BKT[4, 1, 2])
  config = dataclasses.replace(GENERATION, stop_ids=None)
  ended = run(config=config, tokenizer=Words(eos))
  for b, k in np.ndindex(9, K):
    tokens = endless.tokens_BKT[b, k].tolist()
    length = tokens.index(eos) + 1 if eos in tokens else T
    assert ended.length_BK[b, k] == length and ended.ended_BK[b, k] == (eos in tokens)
    np.testing.assert_array_equal(
      ended.tokens_BKT[b, k], tokens[:length] + [0] * (T - length)
    )
    assert (
      ended.logp_BKT[b, k, length - 1] < 0 and not ended.logp_BKT[b, k, length:].any()
    )
  np.testing.assert_array_equal(ended.mask_BKT.sum(-1), ended.length_BK)
  assert ended.ended_BK[4, 1] and not ended.ended_BK.all()


@pytest.mark.parametrize(
  "changes",
  [
    {"greedy": True, "top_k": None},
    {"exploration_temperature": 2.0, "temperature": 0.7, "top_p": 0.9},
    {"mixture": Mixture(MODEL, None, 0.4)},
  ],
  ids=["greedy", "exploration", "mixture"],
)
def test_every_option_of_the_sampler_is_passed_on(changes):
  if "mixture" in changes:
    changes = {"mixture": Mixture(MODEL, params(1), 0.4)}
  config = dataclasses.replace(GENERATION, **changes)
  drawn = run(config=config)
  prompts = sample.PromptBatch(*sample.pad(PROMPTS), np.arange(9))
  samples = sample.sample(
    MODEL, params(), prompts, config=config, key=jax.random.key(7)
  )
  np.testing.assert_array_equal(drawn.tokens_BKT, samples.tokens_BKT)
  np.testing.assert_array_equal(drawn.logp_BKT, samples.logp_BKT)
  assert drawn.texts_BK != whole().texts_BK


@functools.cache
def mesh():
  return meshes.make_mesh(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize(
  "sizes", [{}, {"batch_size": 4}, {"slots": 8}], ids=["all", "batches", "slots"]
)
def test_a_mesh_gives_the_texts_of_one_device(sizes):
  assert_same(run(Batching(**sizes, mesh=mesh())), whole())


@pytest.mark.parametrize("sizes", [{}, {"slots": 8}], ids=["batch", "slots"])
def test_a_mixture_on_a_mesh_is_that_of_one_device(sizes):
  config = dataclasses.replace(GENERATION, mixture=Mixture(MODEL, params(1), 0.4))
  assert_same(run(Batching(**sizes, mesh=mesh()), config), run(config=config))


def test_rows_are_split_over_the_data_axes():
  prompts = sample.PromptBatch(*sample.pad(PROMPTS[:8]), np.arange(8))
  drawn = sample.sample(
    MODEL,
    params(),
    prompts,
    config=GENERATION,
    key=jax.random.key(7),
    mesh=mesh(),
  )
  for x in jax.tree.leaves(drawn):
    assert {shard.data.shape[0] for shard in x.addressable_shards} == {2}
  np.testing.assert_array_equal(drawn.tokens_BKT, whole().tokens_BKT[:8])


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"prompts": []}, "prompts is empty"),
    ({"prompts": [[1], []]}, "prompt 1 is empty"),
    ({"prompts": [[1], [2]], "row_B": [0]}, r"row_B has shape \(1,\)"),
    ({"config": GenerationConfig(T)}, "stop_ids is None and the tokenizer has no EOS"),
  ],
)
def test_bad_input_is_refused_by_name(changes, words):
  with pytest.raises(ValueError, match=words):
    run(**changes)


@pytest.mark.parametrize(
  ("sizes", "words"),
  [
    ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ({"slots": -1}, "slots is -1"),
    ({"batch_size": 2, "slots": 2}, "batch_size is 2 and slots 2; set one of them"),
    ({"batch_size": 6, "mesh": True}, "batch_size is 6; the mesh splits it into 4"),
    ({"slots": 6, "mesh": True}, "slots is 6; the mesh splits it into 4"),
  ],
)
def test_bad_batching_is_refused_by_name(sizes, words):
  sizes = {name: mesh() if name == "mesh" else size for name, size in sizes.items()}
  with pytest.raises(ValueError, match=words):
    Batching(**sizes)
