"""Rollouts on disk, and which prompts an iteration takes."""

import dataclasses
import os

import numpy as np

from xpo_jax.data.tokenise import Example
from xpo_jax.train import rollouts
from xpo_jax.types import Layout


def _rollouts() -> rollouts.Rollouts:
  rng = np.random.default_rng(0)
  lengths = [[1, 3], [2, 2]]
  return rollouts.Rollouts(
    iteration=4,
    row_B=np.array([7, 2]),
    prompts=("a\u2028b\x85", "c"),
    texts_BK=((" x\n", " \u00e9"), ("", " y")),
    examples=tuple(
      Example(
        f"row {b}",
        np.arange(3 + b, dtype=np.int32),
        tuple(rng.integers(0, 9, n).astype(np.int32) for n in row),
        Layout.SAMPLED,
      )
      for b, row in enumerate(lengths)
    ),
    logp=tuple(
      tuple(-rng.random(n).astype(np.float32) * 7 for n in row) for row in lengths
    ),
    ended_BK=np.array([[True, False], [True, True]]),
    reward_BK=np.array([[0.1, np.nan], [-3e-7, 1.0]], np.float32),
    opponents_BJ=((" o\n", ""), ("\u2028", " p")),
    idle=1 / 3,
  )


def test_rollouts_come_back_bit_for_bit(tmp_path):
  made = _rollouts()
  rollouts.write(tmp_path / "r" / "1.jsonl", made)
  again = rollouts.read(tmp_path / "r" / "1.jsonl")
  for name in ("iteration", "prompts", "texts_BK", "opponents_BJ", "idle"):
    assert vars(again)[name] == vars(made)[name]
  for name in ("row_B", "ended_BK", "reward_BK", "length_BK"):
    np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
  assert again.reward_BK.dtype == np.float32
  for got, want in zip(again.examples, made.examples, strict=True):
    assert (got.uid, got.layout) == (want.uid, want.layout)
    for a, b in zip(
      (got.prompt, *got.completions), (want.prompt, *want.completions), strict=True
    ):
      np.testing.assert_array_equal(a, b)
  for got, want in zip(again.logp, made.logp, strict=True):
    for a, b in zip(got, want, strict=True):
      assert a.dtype == np.float32 and a.tobytes() == b.tobytes()
  lines = (tmp_path / "r" / "1.jsonl").read_text(encoding="utf-8").count("\n")
  assert lines == 4  # one a completion, line breaks within texts escaped


def test_rollouts_are_on_disk_before_they_have_their_name(tmp_path, monkeypatch):
  made, path, seen = _rollouts(), tmp_path / "1.jsonl", []

  def synced(descriptor):
    seen.append((os.fstat(descriptor).st_size, path.exists()))

  monkeypatch.setattr(os, "fsync", synced)
  rollouts.write(path, made)
  assert seen == [(path.stat().st_size, False)]


def test_unjudged_rollouts_can_be_looked_at(tmp_path):
  made = dataclasses.replace(_rollouts(), reward_BK=None)
  rollouts.write(tmp_path / "1.jsonl", made)
  assert np.isnan(rollouts.read(tmp_path / "1.jsonl").reward_BK).all()


def test_line_of_prompts_takes_each_once_a_pass_wherever_it_is_cut():
  whole = rollouts.order(5, seed=3, start=0, count=15)
  for start in range(0, 15, 5):
    assert sorted(whole[start : start + 5]) == [0, 1, 2, 3, 4]
  assert (whole[:5] != whole[5:10]).any()
  np.testing.assert_array_equal(rollouts.order(5, 3, 4, 8), whole[4:12])
  assert (rollouts.order(5, 4, 0, 15) != whole).any()
