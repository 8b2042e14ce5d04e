"""The reference's cache: the numbers of scoring, and never those of another run."""

import functools

import jax
import numpy as np
import pytest

from xpo_jax import objectives
from xpo_jax.data import pack, sealed_files
from xpo_jax.data.render import Template
from xpo_jax.data.synthetic_reviews import train_bpe
from xpo_jax.data.tokenise import Limits
from xpo_jax.models.score import score
from xpo_jax.ops import token_stats
from xpo_jax.train import references
from xpo_jax.types import Layout

STATS = references.cacheable(objectives.dpo())


@pytest.fixture(scope="module")
def cache(tiny):
  """Log-probs of the tiny reference, and the batches that training would cut."""
  train = tiny.batches(Layout.PAIR, microbatches=2, seed=3)
  in_order = pack.eval_batches(
    tiny.pairs, pack.PackSizes(8, microbatches=2, row_length=40)
  )
  run = references.scorer(tiny.model, STATS)
  return references.compute(in_order, run, tiny.ref), train


def test_cached_log_probs_equal_scoring_the_shuffled_batch(tiny, cache):
  held, train = cache
  batch = train[1]
  got = references.fill(held, batch).ref["ref_logp_BKT"]
  score_one = functools.partial(score, {"ref": tiny.model}, {"ref": tiny.ref}, STATS)
  scored = jax.jit(lambda b: jax.lax.map(score_one, b))(batch)
  np.testing.assert_allclose(got, scored.ref_logp_BKT, atol=1e-5)
  assert (got[batch.mask_MBKT > 0] < 0).all()
  assert not got[batch.mask_MBKT == 0].any()


def test_every_response_token_has_an_entry(tiny, cache):
  held, _ = cache
  tokens = sum(len(y) for pair in tiny.pairs for y in pair.completions)
  assert held.values["ref_logp_BKT"].shape == (tokens,)
  assert (held.values["ref_logp_BKT"] < 0).all()


def test_no_cache_leaves_the_batch_as_it_is(cache):
  batch = cache[1][0]
  assert references.fill(None, batch) is batch


def test_cache_survives_the_disk(tmp_path, cache):
  held, train = cache
  key = {"data": "x", "statistics": ["ref_logp_BKT"]}
  references.write(tmp_path / "c", held, key)
  again = references.read(tmp_path / "c", train.store, key)
  for got, want in zip(again.values.values(), held.values.values(), strict=True):
    np.testing.assert_array_equal(got, want)


def test_missing_or_torn_cache_is_computed_anew(tmp_path, cache):
  held, train = cache
  directory, key = tmp_path / "train", {"statistics": list(cache[0].values)}
  assert references.read(directory, train.store, key) is None
  references.write(directory, held, key)
  (directory / references.KEY).unlink()  # an older version wrote the key last,
  (directory / sealed_files.MANIFEST).unlink()  # and no manifest
  assert references.read(directory, train.store, key) is None
  references.write(directory, held, key)
  assert references.read(directory, train.store, key) is not None


def test_cache_that_is_killed_while_it_is_written_is_not_there(
  tmp_path, cache, monkeypatch
):
  def killed(path, content):
    raise KeyboardInterrupt

  monkeypatch.setattr(sealed_files, "write_json", killed)
  with pytest.raises(KeyboardInterrupt):
    references.write(tmp_path / "train", cache[0], {})
  assert not (tmp_path / "train").exists()


def test_directory_of_something_else_is_left_alone(tmp_path, cache):
  (tmp_path / "reviews.jsonl").write_text("mine")
  with pytest.raises(ValueError, match=r"holds reviews\.jsonl and no reference cache"):
    references.write(tmp_path, cache[0], {})
  assert (tmp_path / "reviews.jsonl").read_text() == "mine"


def test_damaged_cache_is_refused_with_the_file(tmp_path, cache):
  held, train = cache
  key = {"statistics": list(held.values)}
  references.write(tmp_path / "train", held, key)
  names = [f"{field}.npy" for field in held.values] + [references.KEY]
  for name in names:
    file = tmp_path / "train" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(ValueError, match=f"train: {name} differs.*computed again"):
      references.read(tmp_path / "train", train.store, key)
    file.write_bytes(whole)


@pytest.fixture(scope="module")
def tokenizers():
  """Two that differ."""
  return [train_bpe(["a great film", "a film"], vocab_size=n) for n in (262, 263)]


def test_stale_cache_is_refused_by_the_part_that_differs(
  tmp_path, tiny, cache, tokenizers
):
  held, train = cache
  as_made = {
    "examples": tiny.pairs,
    "tokenizer": tokenizers[0],
    "template": Template(),
    "limits": Limits(),
    "params": tiny.ref,
    "dtype": "float32",
    "stats": STATS,
  }
  references.write(tmp_path / "train", held, references.key(**as_made))
  changes = {
    "data": {"examples": tiny.pairs[:-1]},
    "tokenizer": {"tokenizer": tokenizers[1]},
    r"template\.between": {"template": Template(between=" ")},
    r"truncation\.prompt": {"limits": Limits(prompt=9)},
    "reference": {"params": tiny.policy},
    "dtype": {"dtype": "bfloat16"},
  }
  for part, change in changes.items():
    wanted = references.key(**(as_made | change))
    with pytest.raises(ValueError, match=rf"stale reference cache.*\n  {part}: .*->"):
      references.read(tmp_path / "train", train.store, wanted)


def test_only_statistics_of_the_reference_alone_are_cached():
  dpo, both = objectives.dpo(), token_stats.REF_KL
  assert references.cacheable(dpo) == (token_stats.REF_LOGP,)
  assert not references.reads_live(dpo)
  tdpo_like = dpo._replace(stats=dpo.stats | {both})
  assert references.cacheable(tdpo_like) == () and references.reads_live(tdpo_like)
  free = objectives.simpo()
  assert references.cacheable(free) == () and not references.reads_live(free)
