"""Verdicts on rollouts, from NumPy alone."""

import dataclasses

import numpy as np
import pytest

from xpo_jax.feedback import rules
from xpo_jax.feedback.protocol import OfPolicy, Scores
from xpo_jax.train import judged
from xpo_jax.train.online_experiment import Call, Feedback, Sampling

NAN = np.float32(np.nan)
SOURCE = Call(rules.world_reward)


def _drawn(reward=None, ended=((True, True), (False, True))):
  """As much of `Rollouts` as judging reads."""

  @dataclasses.dataclass
  class Drawn:
    prompts: tuple = ("this film is", "the plot was")
    texts_BK: tuple = ((" great.", " awful."), (" long.", " superb."))
    ended_BK: np.ndarray = dataclasses.field(default_factory=lambda: np.array(ended))
    length_BK: np.ndarray = dataclasses.field(
      default_factory=lambda: np.array([[2, 2], [4, 6]])
    )
    iteration: int = 2
    opponents_BJ: tuple = ()
    idle: float = 0.125
    reward_BK: np.ndarray | None = None

  return Drawn(reward_BK=None if reward is None else np.array(reward, np.float32))


def test_rewards_are_those_of_the_source_in_place():
  drawn = judged.ask(judged.judge(Feedback(SOURCE)), _drawn(), Feedback(SOURCE))
  assert drawn.reward_BK.shape == (2, 2)
  assert drawn.reward_BK[0, 0] > 0 > drawn.reward_BK[0, 1]
  assert drawn.reward_BK[1, 0] == 0 < drawn.reward_BK[1, 1]


def later_wins():
  """A preference for the text that is later in the alphabet."""
  return lambda prompts, first, second: Scores(np.array(first) > np.array(second))


def test_win_rates_are_against_the_group_or_its_opponents():
  feedback = Feedback(Call(later_wins), kind="win_rates")
  asked = judged.judge(feedback)
  alone = judged.ask(asked, _drawn(), feedback).reward_BK
  np.testing.assert_allclose(alone[0], [(0.5 + 1) / 2, (0.5 + 0) / 2])
  met = dataclasses.replace(_drawn(), opponents_BJ=((" b.", " c."), (" m.", " p.")))
  reward_BK = judged.ask(asked, met, feedback).reward_BK
  np.testing.assert_allclose(reward_BK, [[1.0, 0.0], [0.0, 1.0]])


def own_length():
  """A policy that likes answers of as many letters as it has parameters."""

  def make(model, params, tokenizer):
    assert (model, tokenizer) == ("model", "tokenizer")
    return lambda prompts, texts: Scores(
      -np.abs(np.array(list(map(len, texts)), np.float32) - len(params))
    )

  return OfPolicy(make)


def test_a_policy_that_judges_itself_is_asked_as_it_is_now():
  feedback = Feedback(Call(own_length))
  asked = judged.judge(feedback)
  for size in (6, 7):
    facing = judged.facing(asked, "model", [0.0] * size, "tokenizer")
    reward_BK = judged.ask(facing, _drawn(), feedback).reward_BK
    lengths = np.array([[7, 7], [6, 8]])  # of " great." and the others
    np.testing.assert_array_equal(reward_BK, -np.abs(lengths - size))
  other = judged.judge(Feedback(SOURCE))
  assert judged.facing(other, "model", [], "tokenizer") is other


def test_summary_leaves_out_what_is_not_the_policys():
  assert Sampling(completions=5, explore=2.0).own == slice(0, 3)
  assert Sampling(completions=5, first="greedy").own == slice(1, 5)
  drawn = _drawn([[1.0, 3.0], [2.0, 4.0]])
  explored = Sampling(completions=2, explore=2.0)
  found = judged.summary(
    drawn, drawn.reward_BK, np.ones((2, 2)), drawn.reward_BK, explored
  )
  assert found["rollout/reward"] == found["rollout/kl"] == 1.5


def test_nan_is_refused_with_the_completion_shown():
  answer = np.array([[0.0, 1.0], [NAN, 1.0]])
  with pytest.raises(ValueError, match=r"1 of 4 .* iteration 3.*'the plot was'.*long"):
    judged.ask(lambda *_: answer, _drawn(), Feedback(SOURCE))
  drop = Feedback(SOURCE, abstained="drop")
  assert np.isnan(judged.ask(lambda *_: answer, _drawn(), drop).reward_BK[1, 0])


@pytest.mark.parametrize(
  ("rule", "expected"), [("subtract", 2.0 - 0.5), ("replace", 0.5)]
)
def test_missing_eos_changes_the_cut_completion_alone(rule, expected):
  feedback = Feedback(SOURCE, missing_eos=0.5, missing_eos_rule=rule)
  drawn = _drawn([[1.0, 3.0], [2.0, 4.0]])
  reward_BK, present_BK = judged.shaped(drawn, feedback, Sampling())
  np.testing.assert_array_equal(reward_BK, [[1.0, 3.0], [expected, 4.0]])
  assert present_BK.all()
  np.testing.assert_array_equal(drawn.reward_BK[1], [2.0, 4.0])  # the record stays


def test_abstention_is_absent_and_stays_one_when_cut():
  feedback = Feedback(SOURCE, missing_eos=9.0, missing_eos_rule="replace")
  drawn = _drawn([[1.0, 3.0], [NAN, 4.0]])
  reward_BK, present_BK = judged.shaped(drawn, feedback, Sampling())
  np.testing.assert_array_equal(present_BK, [[1, 1], [0, 1]])
  assert reward_BK[1, 0] == 0
  # Where column 0 is a baseline, its prompt has none.
  _, present_BK = judged.shaped(drawn, feedback, Sampling(first="greedy"))
  np.testing.assert_array_equal(present_BK, [[1, 1], [0, 0]])


def test_summary_counts_what_it_says():
  drawn = _drawn([[1.0, 3.0], [NAN, 4.0]])
  kl_BK = np.array([[0.5, 1.5], [2.0, 0.0]])
  reward_BK, present_BK = judged.shaped(drawn, Feedback(SOURCE), Sampling())
  found = judged.summary(drawn, reward_BK, present_BK, kl_BK, Sampling())
  assert found == {
    "rollout/reward": pytest.approx(8 / 3),
    "rollout/reward_std": pytest.approx(np.std([1.0, 3.0, 4.0])),
    "rollout/kl": 1.0,
    "rollout/length": 3.5,
    "rollout/no_eos": 0.25,
    "rollout/abstained": 0.25,
    "rollout/informative": 0.5,  # the lone completion of prompt 2 differs from none
    "rollout/idle": 0.125,
  }
  apart = judged.summary(drawn, reward_BK, present_BK, kl_BK, Sampling(first="greedy"))
  assert apart["rollout/reward"] == 3.5 and apart["rollout/kl"] == 0.75
