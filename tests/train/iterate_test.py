"""Iterations on rollouts that were written beforehand: compiles, and odd rewards."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import compiling
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback import rules
from xpo_jax.models.config import Config
from xpo_jax.train import inputs, online, online_setup, rollouts
from xpo_jax.train.experiment import MeshShape, Scratch, Use
from xpo_jax.train.online_experiment import (
  Call,
  Feedback,
  OnlineExperiment,
  Prompts,
  Sampling,
)
from xpo_jax.types import Layout

RUN = OnlineExperiment(
  Use("rloo", beta=None),
  Prompts("world:30"),
  Scratch(Config(320, 12, 1, 2, 2, 6, 16, tied=True, remat=False)),
  Feedback(Call(rules.length)),
  Sampling(completions=2, max_tokens=8),
  iterations=4,
  prompts_per_iteration=4,
  mesh=MeshShape(data=1),
)


def _quiet(text: str) -> None:
  del text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("run")
  loaded = inputs.load(RUN.prompts, RUN.prompts, {})
  return online_setup.prepare(RUN, run_dir, loaded), run_dir


def _written(run, run_dir, index: int, tokens: int, reward_BK=None):
  """Judged rollouts of so many tokens a completion, as an iteration finds them."""
  if reward_BK is None:
    reward_BK = np.tile(np.float32([1, 0]), (4, 1))
  longest = np.argsort([len(ids) for ids in run.prompts.ids])[-4:]
  ones = np.ones(tokens, np.int32)
  drawn = rollouts.Rollouts(
    iteration=index,
    row_B=longest,
    prompts=tuple(run.prompts.texts[row] for row in longest),
    texts_BK=(("a", "b"),) * 4,
    examples=tuple(
      Example(f"row {row}", run.prompts.ids[row], (5 * ones, 6 * ones), Layout.SAMPLED)
      for row in longest
    ),
    logp=((np.float32(-1) * ones, np.float32(-2) * ones),) * 4,
    ended_BK=np.ones((4, 2), bool),
    reward_BK=np.asarray(reward_BK, np.float32),
  )
  path = run_dir / online.ROLLOUTS / f"{index + 1:06d}.jsonl"
  rollouts.write(path, drawn)
  return online_setup.row_shape(run, max(e.tokens for e in drawn.examples), 2)


def test_few_row_lengths_hold_every_group(prepared):
  run, _ = prepared
  most = run.prompts.width + 2 * RUN.sampling.max_tokens
  shapes = {n: online_setup.row_shape(run, n, 2) for n in range(1, most + 1)}
  assert all(shape.L >= n for n, shape in shapes.items())
  assert len(set(shapes.values())) <= 4


def test_one_compilation_a_row_length_and_none_in_steady_state(prepared):
  run, run_dir = prepared
  tokens = (1, 2, 8, 3)
  shapes = [_written(run, run_dir, i, n) for i, n in enumerate(tokens)]
  # Short, as short, long, short again.
  assert shapes[0] == shapes[1] == shapes[3] != shapes[2]
  state, counts = _copied(run.state), []
  for index in range(4):
    with compiling.heard() as names:
      state, line = online.iterate(run, run_dir, state, index, _quiet)
    assert line["updates"] == 1
    counts.append(names)
  steps = [sum("step" in name for name in names) for names in counts]
  assert steps == [1, 0, 1, 0]
  assert counts[1] == counts[3] == []


def _copied(state):
  return jax.tree.map(lambda x: x.copy(), state)


def test_equal_rewards_are_reported_and_move_nothing(prepared):
  run, run_dir = prepared
  _written(run, run_dir, 4, 1, np.ones((4, 2)))
  state, line = online.iterate(run, run_dir, _copied(run.state), 4, _quiet)
  assert line["rollout/informative"] == line["rollout/reward_std_within"] == 0
  assert line["loss"] == line["grad_norm"] == 0
  pairs = zip(*map(jax.tree.leaves, (state.train.params, run.ref)), strict=True)
  assert all(np.array_equal(a, b) for a, b in pairs)


def test_abstentions_are_counted_and_leave_finite_numbers(prepared):
  run, run_dir = prepared
  nan = np.nan
  _written(run, run_dir, 5, 1, [[1, nan], [nan, nan], [1, 0], [0, 1]])
  _, line = online.iterate(run, run_dir, _copied(run.state), 5, _quiet)
  assert line["rollout/abstained"] == 3 / 8 and line["rollout/informative"] == 0.5
  assert line["rollout/reward"] == pytest.approx(3 / 5)
  assert all(np.isfinite(x) for x in line.values()) and line["grad_norm"] > 0


def test_iteration_without_a_pair_says_so_and_updates_nothing(tmp_path):
  pairs, said = dataclasses.replace(RUN, objective=Use("dpo")), []
  run = online_setup.prepare(
    pairs, tmp_path, inputs.load(pairs.prompts, pairs.prompts, {})
  )
  _written(run, tmp_path, 0, 1, np.ones((4, 2)))
  state, line = online.iterate(run, tmp_path, run.state, 0, said.append)
  assert "nothing to learn from, no update; rewards differ on 0%" in said[0]
  assert "loss" not in line and int(state.train.step) == 0 and int(state.step) == 1
