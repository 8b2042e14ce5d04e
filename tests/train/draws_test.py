"""What an iteration draws: opponents, and slots that are refilled.

Opponents are told from whose parameters they hang on; they are judged against, kept,
and never trained on: one tiny run of Nash-MD.
"""

import copy
import functools
import json

import jax
import numpy as np
import pytest

from tests.train.tiny_runs import MODEL
from xpo_jax.config.data import Evaluation, Prompts
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Rollouts, Scratch
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.feedback import protocol
from xpo_jax.train import metrics, online, online_setup, rollouts


def cyclic():
  """Rock, paper, scissors: the length modulo 3 wins over the one before it."""

  def preference(prompts, first, second):
    del prompts
    ahead = [(len(a) - len(b)) % 3 for a, b in zip(first, second, strict=True)]
    return protocol.Scores(np.array([0.5, 1.0, 0.0])[ahead])

  return preference


RUN = Experiment(
  objective=ObjectiveConfig("nash_md", beta=0.1),
  data=Rollouts(
    prompts=Prompts("synthetic:30"),
    feedback=Feedback(Configured(cyclic), kind="win_rates"),
    sampling=Sampling(
      completions=2, max_completion_tokens=6, opponent=Opponent(0.25, completions=3)
    ),
    iterations=2,
    prompts_per_iteration=6,
  ),
  start=Scratch(MODEL),
  optimizer=Optimizer(learning_rate=1e-2),
  loop=Loop(log_every=1, eval_every=1),
  mesh=MeshShape(data=1),
  evaluation=Evaluation(share=0.2),
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("opponent") / "run"
  assert online.train(RUN, run_dir, say=lambda text: None).finished
  return run_dir


def test_rewards_are_win_rates_against_the_opponents_on_disk(run_dir):
  for iteration in (1, 2):
    path = run_dir / online.ROLLOUTS / f"{iteration:06d}.jsonl"
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
    rollouts.read(run_dir / online.HELD_OUT / f"{done:06d}.jsonl") for done in range(3)
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
  """`(params, ref, average, **changes of Sampling) -> Rollouts`."""
  loaded = online_setup.inputs.load(RUN.data.prompts, RUN.data.prompts, {})
  run = online_setup.prepare(RUN, tmp_path_factory.mktemp("drawn"), loaded)
  start = run.state.train.params["lm"]
  rng = np.random.default_rng(0)
  other = jax.tree.map(lambda x: x + rng.standard_normal(x.shape).astype("f"), start)
  models = {"start": start, "other": other}
  tokenizer = copy.deepcopy(run.tokenizer)

  @functools.cache
  def drawn(params="start", ref="start", average="start", **changes):
    return rollouts.draw(
      run.model,
      models[params],
      run.prompts,
      np.arange(6),
      dataclasses.replace(RUN.data.sampling, **changes),
      tokenizer,
      iteration=0,
      key=jax.random.key(1),
      ref_params=models[ref],
      average=models[average],
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
