"""What an iteration draws, rollouts on disk, which prompts an iteration takes.

Opponents are told from whose parameters they come of; they are judged against, kept,
and never trained on: one tiny run of Nash-MD.
"""

import copy
import dataclasses
import functools
import json
import os

import jax
import numpy as np
import pytest

from tests.quiet import quiet
from tests.train.tiny_runs import NASH, cyclic
from xpo_jax.config.sampling import Opponent
from xpo_jax.data import records
from xpo_jax.data.records import Conversation, Turn
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback import protocol
from xpo_jax.train import loop, metrics, rollouts, rollouts_program, run_directory
from xpo_jax.train.loading import Inputs
from xpo_jax.types import Layout


def _rollouts() -> rollouts.RolloutBatch:
  rng = np.random.default_rng(0)
  lengths = [[1, 3], [2, 2]]
  return rollouts.RolloutBatch(
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
    sampler_logp=tuple(
      tuple(-rng.random(n).astype(np.float32) for n in row) for row in lengths
    ),
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
  cut_BK = [[records.is_cut(text) for text in texts] for texts in again.texts_BK]
  np.testing.assert_array_equal(cut_BK, ~made.ended_BK)
  for got, want in zip(again.examples, made.examples, strict=True):
    assert (got.uid, got.layout) == (want.uid, want.layout)
    for a, b in zip(
      (got.prompt, *got.completions), (want.prompt, *want.completions), strict=True
    ):
      np.testing.assert_array_equal(a, b)
  for name in ("logp", "sampler_logp"):
    for got, want in zip(vars(again)[name], vars(made)[name], strict=True):
      for a, b in zip(got, want, strict=True):
        assert a.dtype == np.float32 and a.tobytes() == b.tobytes()
  lines = (tmp_path / "r" / "1.jsonl").read_text(encoding="utf-8").count("\n")
  assert lines == 4  # one a completion, line breaks within texts escaped


def test_rollouts_of_older_versions_have_no_log_probs_of_the_sampler(tmp_path):
  old = dataclasses.replace(_rollouts(), sampler_logp=())
  rollouts.write(tmp_path / "1.jsonl", old)
  assert rollouts.read(tmp_path / "1.jsonl").sampler_logp == ()


def test_conversations_come_back_with_their_messages(tmp_path):
  turns = (Turn("user", "why?"), Turn("assistant", None, other={"tool_calls": [1]}))
  talk = Conversation(turns, {"tools": [{"name": "f"}]})
  made = dataclasses.replace(_rollouts(), prompts=(talk, "c"))
  rollouts.write(tmp_path / "1.jsonl", made)
  first, second = rollouts.read(tmp_path / "1.jsonl").prompts
  assert (first, first.turns) == (talk, turns)
  assert first.template_arguments == talk.template_arguments
  assert second == "c" and type(second) is str


def test_rollouts_are_on_disk_before_they_have_their_name(tmp_path, monkeypatch):
  made, path, seen = _rollouts(), tmp_path / "1.jsonl", []

  def synced(descriptor):
    seen.append((os.fstat(descriptor).st_size, path.exists()))

  monkeypatch.setattr(os, "fsync", synced)
  rollouts.write(path, made)
  assert seen[0] == (path.stat().st_size, False)


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


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("opponent") / "run"
  assert loop.train(NASH, run_dir, say=quiet).finished
  return run_dir


def test_rewards_are_win_rates_against_the_opponents_on_disk(run_dir):
  for iteration in (1, 2):
    path = run_dir / run_directory.ROLLOUTS / f"{iteration:06d}.jsonl"
    drawn = rollouts.read(path)
    assert [len(texts) for texts in drawn.opponents_BJ] == [3] * 6
    expected = protocol.win_rates_against(
      cyclic(), drawn.prompts, drawn.texts_BK, opponents_BJ=drawn.opponents_BJ
    )
    np.testing.assert_array_equal(drawn.reward_BK, expected)
    lines = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert len(lines) == 6 * 2  # no line, and no token to train on, of an opponent


def test_held_out_win_rates_are_against_the_start(run_dir):
  start, *later = (
    rollouts.read(run_dir / run_directory.HELD_OUT / f"{done:06d}.jsonl")
    for done in range(3)
  )
  for line, drawn in zip(metrics.read(run_dir), later, strict=True):
    assert drawn.texts_BK != start.texts_BK  # the policy has moved, the start has not
    rate_BK = [
      [_wins(text, opponent) for text in texts]
      for texts, (opponent,) in zip(drawn.texts_BK, start.opponents_BJ, strict=True)
    ]
    np.testing.assert_array_equal(drawn.reward_BK, rate_BK)
    assert line["eval/reward"] == pytest.approx(np.mean(rate_BK))


def _wins(text: str, other: str) -> float:
  """By the rule of `cyclic`."""
  return {0: 0.5, 1: 1.0, 2: 0.0}[(len(text) - len(other)) % 3]


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
  """`(params, ref, average, **changes of Sampling) -> RolloutBatch`."""
  run_dir = tmp_path_factory.mktemp("drawn")
  parts, first = rollouts_program.assemble(NASH, run_dir, Inputs(), {}, quiet)
  start = first.train.params["lm"]
  rng = np.random.default_rng(0)
  other = jax.tree.map(lambda x: x + rng.standard_normal(x.shape).astype("f"), start)
  models = {"start": start, "other": other}
  tokenizer = copy.deepcopy(parts.tokenizer)

  @functools.cache
  def drawn(params="start", ref="start", average="start", **changes):
    return rollouts.draw(
      parts.model,
      rollouts.SamplerParams(models[params], models[ref], models[average]),
      parts.prompts,
      np.arange(6),
      dataclasses.replace(NASH.data.sampling, **changes),
      tokenizer,
      iteration=0,
      key=jax.random.key(1),
    )

  # So small a model hardly ever draws EOS: what it draws most becomes that.
  spoken = np.concatenate([y for e in drawn("other").examples for y in e.completions])
  tokenizer.eos_token = tokenizer.convert_ids_to_tokens(
    int(np.bincount(spoken).argmax())
  )
  drawn.cache_clear()
  return drawn


def test_share_and_policy_say_whose_texts_opponents_are(draw):
  def texts(*models, **opponent):
    return draw(*models, opponent=Opponent(completions=3, **opponent)).opponents_BJ

  reference = texts("start", "other", "start", share=1.0)
  assert reference == texts("other", "other", "start", share=1.0)
  assert reference == texts("other", "start", "start", share=0.0)
  assert reference == texts("start", "start", "other", share=0.0, of="average")
  policy = texts("start", "start", "start", share=0.0)
  assert len({reference, policy, texts("start", "other", "start", share=0.5)}) == 3
  assert policy == texts("start", "start", "start", share=0.5)  # of one with itself


def test_explorers_are_the_last_columns_and_change_no_other(draw):
  cold, same, hot = (
    draw(
      "other",
      opponent=None,
      exploration_temperature=exploration_temperature,
      completions=3,
    )
    for exploration_temperature in (0.01, 1.0, 4.0)
  )
  for b in range(6):
    assert cold.texts_BK[b][:2] == same.texts_BK[b][:2] == hot.texts_BK[b][:2]
  assert all(drawn.length_BK.shape == (6, 3) for drawn in (cold, hot))

  def kinds(drawn):
    return len({int(y[0]) for e in drawn.examples for y in e.completions[2:]})

  # Hotter draws differ more; their log-probs are the policy's, and so lower.
  assert kinds(cold) < kinds(hot)
  cold_logp, hot_logp = (
    np.mean([group[2][0] for group in drawn.logp]) for drawn in (cold, hot)
  )
  assert hot_logp < cold_logp


def _gap(drawn) -> np.ndarray:
  """log pi_sampler - log pi of every token, by completion, end to end."""
  both = zip(drawn.sampler_logp, drawn.logp, strict=True)
  return np.concatenate([a - b for ours in both for a, b in zip(*ours, strict=True)])


def test_sampler_is_the_policy_until_it_draws_otherwise(draw):
  same = draw("other", opponent=None)
  np.testing.assert_allclose(_gap(same), 0, atol=1e-5)
  # Among fewer tokens each that is left is likelier, by what the others had.
  fewer = _gap(draw("other", opponent=None, top_k=5))
  assert (fewer > -1e-5).all() and fewer.mean() > 0.01
  # Of a greedy column, which nothing is drawn for, and of samples beside it.
  greedy = draw("other", opponent=None, column0_source="greedy")
  np.testing.assert_allclose(_gap(greedy), 0, atol=1e-5)
  # The last half at another temperature.
  hot = draw("other", opponent=None, exploration_temperature=4.0)
  gap_BK = [
    [np.abs(a - b).mean() for a, b in zip(*ours, strict=True)]
    for ours in zip(hot.sampler_logp, hot.logp, strict=True)
  ]
  assert np.max(gap_BK, 0)[0] < 1e-5 and np.mean(gap_BK, 0)[1] > 0.01


def test_rounded_weights_draw_from_another_distribution(draw):
  """What is recorded of both is of the rounded weights; the trainer knows its own."""
  exact, rounded = (
    draw("other", opponent=None, weights_dtype=dtype) for dtype in (None, "bfloat16")
  )
  np.testing.assert_allclose(_gap(rounded), 0, atol=1e-5)
  first = [
    [group[0][0] for group in drawn.logp]
    for drawn in (exact, rounded)
    if drawn.examples[0].completions[0][0] == exact.examples[0].completions[0][0]
  ]
  assert len(first) == 2
  gap = np.abs(np.subtract(*first))
  assert 1e-5 < gap[0] < 0.3


def test_slots_draw_what_whole_batches_draw_and_idle_less(draw):
  whole, refilled = (draw("other", opponent=None, slots=n) for n in (None, 4))
  assert not whole.ended_BK.all() and len(np.unique(whole.length_BK)) > 2
  assert refilled.texts_BK == whole.texts_BK
  np.testing.assert_array_equal(refilled.ended_BK, whole.ended_BK)
  for ours, theirs in zip(refilled.logp, whole.logp, strict=True):
    for a, b in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)
  # Of a batch every place waits for the longest; refilled ones only at the end.
  length_BK = whole.length_BK
  used, room = (length_BK - 1).sum(), length_BK.size * (length_BK.max() - 1)
  assert whole.idle == pytest.approx(1 - used / room)
  steps = used / (4 * (1 - refilled.idle))
  assert steps == pytest.approx(round(steps)) and 0 < refilled.idle < whole.idle
