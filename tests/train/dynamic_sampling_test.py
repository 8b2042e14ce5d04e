"""Dynamic sampling: which prompts are trained on, what a round reads and leaves."""

import dataclasses
import zlib

import numpy as np
import pytest

from tests.quiet import quiet
from tests.train.tiny_runs import PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback.protocol import Scores
from xpo_jax.train import (
  loop,
  metrics,
  minibatches,
  rewards,
  rollouts,
  run_directory,
)

B, ROUNDS = 4, 3


def _opinion(prompt: str) -> bool:
  """Whether the judge tells completions of a prompt apart."""
  return zlib.crc32(prompt.encode()) % 2 == 0


def sometimes():
  """Rates texts by a digest where it has an opinion on the prompt, else all by 0."""

  def scorer(prompts, texts) -> Scores:
    return Scores(
      np.array(
        [
          zlib.crc32(y.encode()) % 97 if _opinion(x) else 0
          for x, y in zip(prompts, texts, strict=True)
        ],
        np.float32,
      )
    )

  return scorer


RUN = experiments.replace(
  PLAIN,
  objective=ObjectiveConfig("rloo", beta=None),
  feedback=Feedback(Configured(sometimes)),
  sampling=Sampling(completions=2, max_completion_tokens=8),
  iterations=4,
  prompts_per_iteration=B,
  dynamic_sampling=ROUNDS,
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("dynamic") / "run"
  assert loop.train(RUN, run_dir, say=quiet).finished
  return run_dir


def _path(run_dir, index: int):
  return run_dir / run_directory.ROLLOUTS / f"{index + 1:06d}.jsonl"


def _informative(drawn) -> np.ndarray:
  return drawn.reward_BK[:, 0] != drawn.reward_BK[:, 1]


def test_first_prompts_with_different_rewards_are_used():
  drawn = dataclasses.make_dataclass("Drawn", ["reward_BK"])(
    np.array([[1, 1], [0, 1], [np.nan, 3], [2, 1], [0, 5]], np.float32)
  )
  present_BK = ~np.isnan(drawn.reward_BK)
  np.testing.assert_array_equal(
    rewards.used(drawn, present_BK, 2), [False, True, False, True, False]
  )
  np.testing.assert_array_equal(
    rewards.used(drawn, present_BK, 9), [False, True, False, True, True]
  )


def test_rounds_are_sampled_until_enough_prompts_are_informative(run_dir):
  rounds = []
  for index, line in enumerate(metrics.read(run_dir)):
    drawn = rollouts.read(_path(run_dir, index))
    informative_B = _informative(drawn)
    rounds.append(len(drawn.row_B) // B)
    # Not one round more than it takes, nor more than are allowed.
    assert informative_B[: (rounds[-1] - 1) * B].sum() < B
    assert rounds[-1] == ROUNDS or informative_B.sum() >= B
    used = min(informative_B.sum(), B)
    assert line["rollout/prompts_used"] == used
    assert line["rollout/sampled_per_used"] == len(drawn.row_B) / used
    assert line["rollout/frac_informative_prompts"] == informative_B.mean()
  assert len(set(rounds)) > 1  # of different numbers, or the next test shows nothing


def test_iterations_take_the_prompts_in_their_order_and_none_twice(run_dir):
  drawn = [rollouts.read(_path(run_dir, index)) for index in range(4)]
  taken = np.concatenate([each.row_B for each in drawn])
  np.testing.assert_array_equal(taken, rollouts.order(20, 0, 0, len(taken)))


def test_rounds_are_drawn_from_keys_of_their_own(run_dir):
  # So small a model is nearly uniform: draws of one key are the same for any prompt.
  for index in range(4):
    drawn = rollouts.read(_path(run_dir, index))
    first = [tuple(example.completions[0]) for example in drawn.examples]
    assert len(set(first)) == len(first)


class _KilledError(Exception):
  pass


@pytest.mark.parametrize("call", [2, 4])
def test_run_killed_between_rounds_asks_no_judge_twice_and_ends_the_same(
  run_dir, tmp_path, monkeypatch, call
):
  asked, ask = [], rewards.ask

  def dying(judge, drawn, feedback):
    if len(asked) == call - 1 and not dying.killed:
      dying.killed = True
      raise _KilledError
    asked.append(tuple(drawn.row_B))
    return ask(judge, drawn, feedback)

  dying.killed = False
  monkeypatch.setattr(rewards, "ask", dying)
  with pytest.raises(_KilledError):
    loop.train(RUN, tmp_path / "run", say=quiet)
  loop.resume(tmp_path / "run", say=quiet)
  rows = [
    tuple(round_)
    for index in range(4)
    for round_ in rollouts.read(_path(run_dir, index)).row_B.reshape(-1, B)
  ]
  assert asked == rows
  for index in range(4):
    ours, theirs = (_path(each, index) for each in (tmp_path / "run", run_dir))
    assert ours.read_bytes() == theirs.read_bytes()


def test_what_is_learned_from_are_the_first_informative_prompts(
  run_dir, tmp_path, monkeypatch
):
  learned, cut = [], minibatches.cut

  def watched(data, seed, index, examples, *others):
    learned.append([example.uid for example in examples])
    return cut(data, seed, index, examples, *others)

  monkeypatch.setattr(minibatches, "cut", watched)
  loop.train(experiments.replace(RUN, iterations=2), tmp_path / "run", say=quiet)
  for index, uids in enumerate(learned):
    drawn = rollouts.read(_path(run_dir, index))
    at = np.flatnonzero(_informative(drawn))[:B]
    assert uids == [drawn.examples[b].uid for b in at]
