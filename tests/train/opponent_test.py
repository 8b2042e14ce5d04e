"""Opponents: drawn from the mixture they name, judged against, kept, never trained on.

One tiny run of Nash-MD; what is drawn is told from whose parameters it hangs on.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from xpo_jax.feedback import protocol
from xpo_jax.models.config import Config
from xpo_jax.train import metrics, online, online_setup, rollouts
from xpo_jax.train.experiment import Evaluation, Loop, MeshShape, Scratch, Use
from xpo_jax.train.online_experiment import (
  Call,
  Feedback,
  OnlineExperiment,
  Opponent,
  Prompts,
  Sampling,
)
from xpo_jax.train.optim import Optimizer

MODEL = Config(
  vocab=320,
  width=12,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=6,
  mlp_width=16,
  tied=True,
  remat=False,
)


def cyclic():
  """Rock, paper, scissors: the length modulo 3 wins over the one before it."""

  def preference(prompts, first, second):
    del prompts
    ahead = [(len(a) - len(b)) % 3 for a, b in zip(first, second, strict=True)]
    return protocol.Scores(np.array([0.5, 1.0, 0.0])[ahead])

  return preference


RUN = OnlineExperiment(
  Use("nash_md", beta=0.1),
  Prompts("world:30"),
  Scratch(MODEL),
  Feedback(Call(cyclic), kind="win_rates"),
  Sampling(completions=2, max_tokens=6, opponent=Opponent(0.25, completions=3)),
  iterations=2,
  prompts_per_iteration=6,
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
      cyclic(), drawn.prompts, drawn.texts_BK, drawn.opponents_BJ
    )
    np.testing.assert_array_equal(drawn.reward_BK, expected)
    lines = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    assert len(lines) == 6 * 2  # no line, and no token to train on, of an opponent


def test_held_out_win_rates_are_against_the_start(run_dir):
  lines = metrics.read(run_dir)
  # Among themselves completions win half of the time, whatever the policy.
  assert any(line["eval/reward"] != pytest.approx(0.5) for line in lines)
  assert all(0 <= line["eval/reward"] <= 1 for line in lines)


@pytest.fixture(scope="module")
def against(tmp_path_factory):
  """`(params, ref, average, opponent) -> texts of the opponents`."""
  loaded = online_setup.inputs.load(RUN.prompts, RUN.prompts, {})
  run = online_setup.prepare(RUN, tmp_path_factory.mktemp("drawn"), loaded)
  start = run.state.train.params["lm"]
  rng = np.random.default_rng(0)
  other = jax.tree.map(lambda x: x + rng.standard_normal(x.shape).astype("f"), start)

  @functools.cache
  def texts(params: str, ref: str, average: str, opponent: Opponent):
    models = {"start": start, "other": other}
    drawn = rollouts.draw(
      run.model,
      models[params],
      run.prompts,
      np.arange(6),
      dataclasses.replace(RUN.sampling, opponent=opponent),
      run.tokenizer,
      iteration=0,
      key=jax.random.key(1),
      ref_params=models[ref],
      average=models[average],
    )
    return drawn.opponents_BJ

  return texts


def test_share_and_policy_say_whose_texts_they_are(against):
  best_response, self_play = Opponent(1.0, completions=3), Opponent(0.0, completions=3)
  average = Opponent(0.0, of="average", completions=3)
  reference = against("start", "other", "start", best_response)
  assert reference == against("other", "other", "start", best_response)
  assert reference == against("other", "start", "start", self_play)
  assert reference == against("start", "start", "other", average)
  assert reference != against("start", "start", "start", self_play)
