"""Verdicts on rollouts, from NumPy alone."""

import dataclasses

import jax
import numpy as np
import pytest

from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import Experiment, MeshShape, Rollouts, Scratch, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import client, endpoint, reward_functions, reward_model, rules
from xpo_jax.feedback.protocol import Scores, SelfFeedback
from xpo_jax.models import transformer
from xpo_jax.models.config import Config
from xpo_jax.train import loop, rewards, rollouts, run_directory

NAN = np.float32(np.nan)
MODEL = Config(
  vocab=300, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8
)
SOURCE = Configured(rules.synthetic_reward)


def _drawn(reward=None, ended=((True, True), (False, True))):
  """As much of a `RolloutBatch` as judging reads."""

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
    reward_parts: dict = dataclasses.field(default_factory=dict)

  return Drawn(reward_BK=None if reward is None else np.array(reward, np.float32))


def test_rewards_are_those_of_the_source_in_place():
  drawn = rewards.ask(rewards.judge(Feedback(SOURCE)), _drawn(), Feedback(SOURCE))
  assert drawn.reward_BK.shape == (2, 2)
  assert drawn.reward_BK[0, 0] > 0 > drawn.reward_BK[0, 1]
  assert drawn.reward_BK[1, 0] == 0 < drawn.reward_BK[1, 1]


def later_wins():
  """A preference for the text that is later in the alphabet."""
  return lambda prompts, first, second: Scores(np.array(first) > np.array(second))


def test_win_rates_are_against_the_group_or_its_opponents():
  feedback = Feedback(Configured(later_wins), kind="win_rates")
  asked = rewards.judge(feedback)
  alone = rewards.ask(asked, _drawn(), feedback).reward_BK
  np.testing.assert_allclose(alone[0], [(0.5 + 1) / 2, (0.5 + 0) / 2])
  apart = dataclasses.replace(feedback, include_self=False)
  others_BK = rewards.ask(rewards.judge(apart), _drawn(), apart).reward_BK
  np.testing.assert_array_equal(others_BK, [[1, 0], [0, 1]])
  met = dataclasses.replace(_drawn(), opponents_BJ=((" b.", " c."), (" m.", " p.")))
  reward_BK = rewards.ask(asked, met, feedback).reward_BK
  np.testing.assert_allclose(reward_BK, [[1.0, 0.0], [0.0, 1.0]])


def letters():
  """Scores by the number of letters, and abstains on a text with a question mark."""

  def count(prompts, texts):
    return [np.nan if "?" in text else len(text.strip()) for text in texts]

  return count


def early():
  """Scores texts that begin with a letter of the alphabet's first half."""
  return lambda prompts, texts: [float(text.strip() < "n") for text in texts]


@pytest.mark.parametrize("opponents", [(), ((" b.", " c."), (" m.", " p."))])
def test_win_rates_by_a_sum_of_rewards_report_each_reward(opponents):
  scorers = (Configured(letters), Configured(early))
  summed = Configured(reward_functions.weighted, scorers=scorers, weights=(2.0, -3.0))
  source = Configured(rules.bradley_terry, scorer=summed)
  feedback = Feedback(source, kind="win_rates", abstained="drop")
  texts = ((" great.", " awful!!"), (" long?", " superb."))
  drawn = dataclasses.replace(_drawn(), texts_BK=texts, opponents_BJ=opponents)
  drawn = rewards.ask(rewards.judge(feedback), drawn, feedback)
  parts = drawn.reward_parts
  assert set(parts) == {"letters", "early"}
  np.testing.assert_array_equal(parts["letters"], [[6, 7], [NAN, 7]])
  np.testing.assert_array_equal(parts["early"], [[1, 1], [1, 0]])
  if not opponents:  # 6 letters against 7, both early
    theirs = 1 / (1 + np.exp(2.0))
    np.testing.assert_allclose(drawn.reward_BK[0, 0], (0.5 + theirs) / 2, rtol=1e-6)
  reward_BK, present_BK = rewards.shaped(drawn, feedback, Sampling(completions=2))
  found = rewards.summary(
    drawn, reward_BK, present_BK, np.zeros((2, 2)), Sampling(completions=2)
  )
  # Of the completions that were judged: without opponents the last one had no rival.
  judged = [6, 7, 7] if opponents else [6, 7]
  assert found["rollout/reward/letters"] == pytest.approx(np.mean(judged))
  assert found["rollout/reward/early"] == pytest.approx(2 / 3 if opponents else 1)


def nothing():
  """A source that makes no judge."""
  return {}


@pytest.mark.parametrize(
  ("source", "kind", "match"),
  [
    (later_wins, "scores", "later_wins, which makes a Preference.*to 'win_rates'"),
    (rules.synthetic_reward, "win_rates", "synthetic_reward, .* a Scorer.*to 'scores'"),
    (nothing, "scores", "nothing, which makes dict; .*protocol.Scorer"),
  ],
)
def test_a_source_of_another_kind_is_refused_when_it_is_made(source, kind, match):
  with pytest.raises(ValueError, match=f"Feedback.source is .*{match}"):
    rewards.judge(Feedback(Configured(source), kind=kind))


def any_judge():
  """Takes whatever it is asked about."""
  return lambda *asked: Scores(np.zeros(len(asked[0])))


@pytest.mark.parametrize("kind", ["scores", "win_rates"])
def test_a_judge_that_does_not_say_what_it_takes_passes(kind):
  feedback = Feedback(Configured(any_judge), kind=kind)
  found = rewards.ask(rewards.judge(feedback), _drawn(), feedback)
  assert found.reward_BK.shape == (2, 2)


def own_length():
  """A policy that likes answers of as many letters as it has parameters."""

  def make(model, params, tokenizer):
    assert (model, tokenizer) == ("model", "tokenizer")
    return lambda prompts, texts: Scores(
      -np.abs(np.array(list(map(len, texts)), np.float32) - len(params))
    )

  return SelfFeedback(make)


def test_a_policy_that_judges_itself_is_asked_as_it_is_now():
  feedback = Feedback(Configured(own_length))
  asked = rewards.judge(feedback)
  for size in (6, 7):
    facing = rewards.facing(asked, "model", [0.0] * size, "tokenizer")
    reward_BK = rewards.ask(facing, _drawn(), feedback).reward_BK
    lengths = np.array([[7, 7], [6, 8]])  # of " great." and the others
    np.testing.assert_array_equal(reward_BK, -np.abs(lengths - size))
  other = rewards.judge(Feedback(SOURCE))
  assert rewards.facing(other, "model", [], "tokenizer") is other


def test_summary_leaves_out_what_is_not_the_policys():
  assert Sampling(completions=5, exploration_temperature=2.0).own == slice(0, 3)
  assert Sampling(completions=5, column0_source="greedy").own == slice(1, 5)
  drawn = _drawn([[1.0, 3.0], [2.0, 4.0]])
  explored = Sampling(completions=2, exploration_temperature=2.0)
  found = rewards.summary(
    drawn, drawn.reward_BK, np.ones((2, 2)), drawn.reward_BK, explored
  )
  assert found["rollout/reward"] == found["rollout/kl"] == 1.5


def test_nan_is_refused_with_the_completion_shown():
  answer = np.array([[0.0, 1.0], [NAN, 1.0]])
  with pytest.raises(ValueError, match=r"1 of 4 .* iteration 3.*'the plot was'.*long"):
    rewards.ask(lambda *_: answer, _drawn(), Feedback(SOURCE))
  drop = Feedback(SOURCE, abstained="drop")
  assert np.isnan(rewards.ask(lambda *_: answer, _drawn(), drop).reward_BK[1, 0])


@pytest.mark.parametrize(
  ("rule", "expected"), [("subtract", 2.0 - 0.5), ("replace", 0.5)]
)
def test_missing_eos_changes_the_cut_completion_alone(rule, expected):
  feedback = Feedback(SOURCE, missing_eos=0.5, missing_eos_rule=rule)
  drawn = _drawn([[1.0, 3.0], [2.0, 4.0]])
  reward_BK, present_BK = rewards.shaped(drawn, feedback, Sampling())
  np.testing.assert_array_equal(reward_BK, [[1.0, 3.0], [expected, 4.0]])
  assert present_BK.all()
  np.testing.assert_array_equal(drawn.reward_BK[1], [2.0, 4.0])  # the record stays


def test_abstention_is_absent_and_stays_one_when_cut():
  feedback = Feedback(SOURCE, missing_eos=9.0, missing_eos_rule="replace")
  drawn = _drawn([[1.0, 3.0], [NAN, 4.0]])
  reward_BK, present_BK = rewards.shaped(drawn, feedback, Sampling())
  np.testing.assert_array_equal(present_BK, [[1, 1], [0, 1]])
  assert reward_BK[1, 0] == 0
  # Where column 0 is a baseline, its prompt has none.
  _, present_BK = rewards.shaped(drawn, feedback, Sampling(column0_source="greedy"))
  np.testing.assert_array_equal(present_BK, [[1, 1], [0, 0]])


def test_overlong_penalty_falls_over_the_buffer_before_the_limit():
  """DAPO's: 0 up to L - C tokens, then (L - C - n) / C, here of L = 6 and C = 4."""
  feedback = Feedback(SOURCE, overlong_buffer=4, overlong_weight=2.0)
  drawn = _drawn([[1.0, 3.0], [2.0, NAN]])  # of 2, 2, 4 and 6 tokens
  sampling = Sampling(max_completion_tokens=6)
  reward_BK, present_BK = rewards.shaped(drawn, feedback, sampling)
  np.testing.assert_array_equal(reward_BK, [[1.0, 3.0], [2.0 - 2 * 2 / 4, 0.0]])
  np.testing.assert_array_equal(present_BK, [[1, 1], [1, 0]])
  longest = rewards.shaped(_drawn([[0, 0], [0, 0]]), feedback, sampling)[0][1, 1]
  assert longest == -2


def test_overlong_filtering_leaves_out_what_the_policy_did_not_end():
  drawn = _drawn([[1.0, 3.0], [2.0, 4.0]], ended=((False, True), (True, False)))
  feedback = Feedback(SOURCE, overlong_filtering=True)
  _, present_BK = rewards.shaped(drawn, feedback, Sampling())
  np.testing.assert_array_equal(present_BK, [[0, 1], [1, 0]])
  # A cut baseline in column 0 is still one.
  greedy = Sampling(column0_source="greedy")
  _, present_BK = rewards.shaped(drawn, feedback, greedy)
  np.testing.assert_array_equal(present_BK, [[1, 1], [1, 0]])


def test_summary_counts_what_it_says():
  drawn = _drawn([[1.0, 3.0], [NAN, 4.0]])
  kl_BK = np.array([[0.5, 1.5], [2.0, 0.0]])
  reward_BK, present_BK = rewards.shaped(drawn, Feedback(SOURCE), Sampling())
  found = rewards.summary(drawn, reward_BK, present_BK, kl_BK, Sampling())
  assert found == {
    "rollout/reward": pytest.approx(8 / 3),
    "rollout/reward_std": pytest.approx(np.std([1.0, 3.0, 4.0])),
    "rollout/reward_std_within": 0.5,  # of 1 and 3, and of 4 alone
    "rollout/kl": 1.0,
    "rollout/kl_token": pytest.approx(4.0 / 14),
    "rollout/length": 3.5,
    "rollout/no_eos": 0.25,
    "rollout/abstained": 0.25,
    # The lone completion of prompt 2 differs from none.
    "rollout/frac_informative_prompts": 0.5,
    "rollout/idle": 0.125,
  }
  apart = rewards.summary(
    drawn, reward_BK, present_BK, kl_BK, Sampling(column0_source="greedy")
  )
  assert apart["rollout/reward"] == 3.5 and apart["rollout/kl"] == 0.75


def test_summary_names_no_reward_where_nothing_was_judged():
  drawn = _drawn([[NAN, NAN], [NAN, NAN]])
  reward_BK, present_BK = rewards.shaped(drawn, Feedback(SOURCE), Sampling())
  kl_BK = np.zeros((2, 2))
  found = rewards.summary(drawn, reward_BK, present_BK, kl_BK, Sampling())
  assert not {"rollout/reward", "rollout/reward_std"} & set(found)
  assert (
    found["rollout/abstained"] == 1 and found["rollout/frac_informative_prompts"] == 0
  )


def own_weight():
  """Rates every answer by the policy's first weight."""

  def make(model, params, tokenizer):
    weight = np.float32(jax.tree.leaves(params)[0].ravel()[0])
    return lambda prompts, texts: Scores(np.full(len(texts), weight))

  return SelfFeedback(make)


def test_the_loop_asks_the_policy_of_the_iteration(tmp_path):
  run = Experiment(
    objective=ObjectiveConfig("reinforce", beta=None),
    data=Rollouts(
      prompts=Prompts("synthetic:20"),
      feedback=Feedback(Configured(own_weight)),
      sampling=Sampling(completions=1, max_completion_tokens=4),
      iterations=2,
      prompts_per_iteration=4,
    ),
    start=Scratch(MODEL),
    optimizer=Optimizer(learning_rate=0.1, schedule="constant"),
    mesh=MeshShape(data=1),
  )
  start = transformer.model(MODEL).init(jax.random.fold_in(jax.random.key(0), 0))
  done = loop.train(run, tmp_path / "run", say=lambda text: None)
  first, second = (
    set(rollouts.read(path).reward_BK.ravel().tolist())
    for path in sorted((tmp_path / "run" / run_directory.ROLLOUTS).iterdir())
  )
  assert first == {float(jax.tree.leaves(start)[0].ravel()[0])}
  assert len(second) == 1 and second != first
  last = float(jax.tree.leaves(done.params["lm"])[0].ravel()[0])
  assert second != {last}  # of the policy before the second iteration's update


ENDPOINT = {"model": "tiny", "base_url": "http://127.0.0.1:9/v1", "attempts": 1}


@pytest.mark.parametrize(
  ("source", "error", "match"),
  [
    (
      Configured(endpoint.scorer, endpoint=ENDPOINT),
      client.JudgeError,
      "127.0.0.1:9/v1 cannot be reached",
    ),
    (
      Configured(reward_model.scorer, directory="nowhere"),
      ValueError,
      "not a reward model",
    ),
  ],
)
def test_a_judge_that_cannot_judge_is_named_before_the_start_is_trained(
  source, error, match, tmp_path
):
  begun = Experiment(ObjectiveConfig("sft"), Data("synthetic:20"), Scratch(MODEL))
  run = Experiment(
    objective=ObjectiveConfig("reinforce"),
    data=Rollouts(
      prompts=Prompts("synthetic:20"),
      feedback=Feedback(source),
    ),
    start=Stage(begun),
  )
  with pytest.raises(error, match=match):
    loop.train(run, tmp_path / "run", say=lambda text: None)
  assert not (tmp_path / "run").exists()
