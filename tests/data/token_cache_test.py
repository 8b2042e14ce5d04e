"""A data set read from the cache is the one that was made; a change makes another."""

import dataclasses
import functools

import chex
import numpy as np
import pytest

from tests import tiny_policy
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, Pretrained
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import audit, tokenise
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Limits
from xpo_jax.models import hf_checkpoint
from xpo_jax.train import loading


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A model, and 60 pairs of which one is bad."""
  home = tmp_path_factory.mktemp("home")
  tiny_policy.write(home / "model")
  rows = tiny_policy.write_pairs(home / "pairs.jsonl", 60)
  rows[7]["rejected"] = rows[7]["chosen"]
  tiny_policy.write_rows(home / "pairs.jsonl", rows)
  return home


@pytest.fixture
def prepare(home, tmp_path, monkeypatch):
  """`(data, evaluation) -> (examples, held-out, counts, rows tokenised)`."""
  tokenizer = hf_checkpoint.read_tokenizer(home / "model")
  tokenised, number = [], iter(range(100))
  original = tokenise.tokenise_valid

  def watched(rows, *args, **options):
    tokenised.append(len(rows))
    return original(rows, *args, **options)

  monkeypatch.setattr(tokenise, "tokenise_valid", watched)

  def prepare(data, evaluation=Evaluation(share=0.3)):
    run_dir = tmp_path / f"run {next(number)}"
    run_dir.mkdir()
    start = Pretrained(str(home / "model"))
    run = Experiment(ObjectiveConfig("dpo"), data, start, evaluation=evaluation)
    loaded = loading.load(data, data, {})
    tokenised.clear()
    prepared = loading.prepare(run, loaded, tokenizer, run_dir, {})
    lists = [path.read_bytes() for path in sorted(run_dir.glob("bad_rows*"))]
    return *prepared, lists, sum(tokenised)

  return prepare


def _data(home, cache, **changes):
  path = str(home / "pairs.jsonl")
  return Data(path, bad_rows="drop", token_cache=cache and str(cache), **changes)


def _alike(one, other):
  for ours, theirs in zip(one[:2], other[:2], strict=True):
    assert audit.digest(ours) == audit.digest(theirs)
    for a, b in zip(ours, theirs, strict=True):
      assert (a.uid, a.layout) == (b.uid, b.layout)
      chex.assert_trees_all_equal(vars(a)["completions"], vars(b)["completions"])
  assert one[2:4] == other[2:4]  # counts, and the lists of dropped rows


def test_second_run_tokenises_nothing_and_has_the_same(home, prepare, tmp_path):
  plain = prepare(_data(home, None))
  first, second = (prepare(_data(home, tmp_path / "cache")) for _ in range(2))
  assert (plain[4], first[4], second[4]) == (59, 59, 0)
  _alike(first, plain)
  _alike(second, plain)
  assert isinstance(second[0].store.tokens, np.memmap) and len(second[3]) == 1


@pytest.mark.parametrize(
  "changes",
  [
    {"limits": Limits(completion=5)},
    {"template": Template(before="Q: ")},
    {"limit": 30},
    {"portion": "train"},
    {"seed": 1},
    {"also": ("{home}/pairs.jsonl=0.5",)},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_another_setting_is_another_data_set(changes, home, prepare, tmp_path):
  if "also" in changes:
    changes = {"also": tuple(x.format(home=home) for x in changes["also"])}
  prepare(_data(home, tmp_path / "cache"))
  changed = prepare(_data(home, tmp_path / "cache", **changes))
  assert changed[4]
  _alike(changed, prepare(_data(home, None, **changes)))


def test_a_file_of_held_out_records_is_cached_beside_the_others(
  home, prepare, tmp_path
):
  held_out = Evaluation(str(home / "pairs.jsonl"), limit=20)
  data = _data(home, tmp_path / "cache")
  first, second = (prepare(data, held_out) for _ in range(2))
  assert (first[4], second[4]) == (59 + 20, 0) and len(second[1]) == 20
  _alike(second, prepare(_data(home, None), held_out))
  shorter = prepare(data, dataclasses.replace(held_out, limit=10))
  assert (shorter[4], len(shorter[1])) == (10, 10)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_tokenised(
  home, prepare, monkeypatch
):
  monkeypatch.setattr(tokenise, "tokenise_valid", None)  # no call of it succeeds
  with pytest.raises(
    ValueError, match=r"Data.token_cache .*pairs.jsonl cannot .* or None"
  ):
    prepare(_data(home, home / "pairs.jsonl"))


def test_a_damaged_file_is_named_and_no_data_set_is_read(home, prepare, tmp_path):
  again = functools.partial(prepare, _data(home, tmp_path / "cache"))
  again()
  (tokens,) = (tmp_path / "cache").glob("*/train/tokens.npy")
  content = bytearray(tokens.read_bytes())
  content[-1] ^= 1
  tokens.write_bytes(content)
  with pytest.raises(ValueError, match=r"train/tokens.npy differs .* made again"):
    again()
