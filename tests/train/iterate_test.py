"""Iterations on rollouts that were written beforehand: compiles, and odd rewards."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest

from tests import compiling
from xpo_jax.config import experiment
from xpo_jax.config.data import Evaluation, Prompts
from xpo_jax.config.experiment import Experiment, MeshShape, Rollouts, Scratch
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback import rules
from xpo_jax.models.config import Config
from xpo_jax.train import loading, minibatches, online, online_setup, rollouts
from xpo_jax.train.state import OnlineState
from xpo_jax.types import Layout

RUN = Experiment(
  objective=ObjectiveConfig("rloo", beta=None),
  data=Rollouts(
    prompts=Prompts("synthetic:30"),
    feedback=Feedback(Configured(rules.length)),
    sampling=Sampling(completions=2, max_completion_tokens=8),
    iterations=4,
    prompts_per_iteration=4,
  ),
  start=Scratch(Config(320, 12, 1, 2, 2, 6, 16, tied=True, remat=False)),
  mesh=MeshShape(data=1),
)


def _quiet(text: str) -> None:
  del text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("run")
  loaded = loading.load(RUN.data.prompts, RUN.data.prompts, {})
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
  most = run.prompts.width + 2 * RUN.data.sampling.max_completion_tokens
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
  assert (
    line["rollout/frac_informative_prompts"] == line["rollout/reward_std_within"] == 0
  )
  assert line["loss"] == line["grad_norm"] == 0
  pairs = zip(*map(jax.tree.leaves, (state.train.params, run.ref)), strict=True)
  assert all(np.array_equal(a, b) for a, b in pairs)


def test_abstentions_are_counted_and_leave_finite_numbers(prepared):
  run, run_dir = prepared
  nan = np.nan
  _written(run, run_dir, 5, 1, [[1, nan], [nan, nan], [1, 0], [0, 1]])
  _, line = online.iterate(run, run_dir, _copied(run.state), 5, _quiet)
  assert (
    line["rollout/abstained"] == 3 / 8
    and line["rollout/frac_informative_prompts"] == 0.5
  )
  assert line["rollout/reward"] == pytest.approx(3 / 5)
  assert all(np.isfinite(x) for x in line.values()) and line["grad_norm"] > 0


def test_minibatches_of_an_iteration_have_an_order_of_their_own(prepared):
  run, run_dir = prepared
  _written(run, run_dir, 6, 1)
  drawn = rollouts.read(run_dir / online.ROLLOUTS / "000007.jsonl")

  def order(index):
    batches, _ = minibatches.batches_of(run, index, drawn.examples, {})
    return tuple(batches.groups_of(0))

  orders = [order(index) for index in range(8)]
  assert orders == [order(index) for index in range(8)]
  assert len(set(orders)) > 3  # of 24


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
  """PPO whose sampler is the start and whose policy and reference are elsewhere, its
  value head not 0; and where it runs."""
  run_dir = tmp_path_factory.mktemp("behind")
  ppo = dataclasses.replace(
    RUN,
    objective=ObjectiveConfig("ppo"),
    sampling=dataclasses.replace(RUN.data.sampling, staleness=1),
    ref_update_every=1,
    evaluation=Evaluation(share=0.3),
  )
  run = online_setup.prepare(ppo, run_dir, loading.load(ppo.prompts, ppo.prompts, {}))
  start = run.state
  moved = jax.tree.map(
    lambda x: x + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape), start.train.params
  )
  train = dataclasses.replace(start.train, params=moved)
  return run, dataclasses.replace(start, train=train, ref={"lm": moved["lm"]}), run_dir


def test_old_values_are_of_the_policy_that_sampled(behind, monkeypatch):
  run, state, run_dir = behind
  _written(run, run_dir, 0, 1)
  seen = []

  def update(run, run_dir, state, ref, index, drawn, values, line):
    seen.append((drawn, values))
    return state.train, {}

  monkeypatch.setattr(online, "_update", update)
  online.iterate(run, run_dir, state, 0, _quiet)
  ((drawn, values),) = seen
  now = minibatches.recorded(run, drawn, state.train.params, state.ref)
  # The start's value head is 0, that of the policy of now is not.
  assert not np.any(values["old_value_BKT"]) and np.all(now["old_value_BKT"])


def test_held_out_kl_is_to_the_reference_that_the_run_started_with(behind):
  run, state, run_dir = behind
  _written(run, run_dir, 0, 1)
  (run_dir / online.HELD_OUT).mkdir()
  path = run_dir / online.HELD_OUT / "000000.jsonl"
  (run_dir / online.ROLLOUTS / "000001.jsonl").rename(path)
  found = online.evaluate(run, run_dir, state)["eval/kl"]
  start, renewed = (
    minibatches.seq_kl(
      minibatches.recorded(run, rollouts.read(path), state.train.params, ref)
    ).mean()
    for ref in (run.ref, state.ref)
  )
  assert found == pytest.approx(start) and found != pytest.approx(renewed, rel=1e-3)


class _Part(NamedTuple):
  """As much of a run, and of a trainer's state, as moving on reads."""

  experiment: OnlineExperiment
  params: object = None


@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_sampler_is_as_far_behind_as_it_should_be(staleness):
  sampling = dataclasses.replace(RUN.data.sampling, staleness=staleness)
  run = _Part(experiment.replace(RUN, sampling=sampling))
  # Policies by the iterations that they have learned from.
  state, samplers = OnlineState(0, 0, None, (0,) * staleness, None), []
  for index in range(6):
    samplers.append(state.sampler[0])
    state = online._after(run, state, index + 1, index, index, {}, 0)
  assert samplers == [max(index - staleness, 0) for index in range(6)]


def test_reference_is_renewed_after_every_so_many_iterations():
  run = _Part(experiment.replace(RUN, ref_update_every=3))
  state, renewed = OnlineState(0, None, {"lm": np.float32(0)}, (), None), []
  for index in range(7):
    trained = _Part(RUN, {"lm": np.float32(index + 1)})
    state = online._after(run, state, trained, None, index, {}, 0)
    renewed.append(float(state.ref["lm"]))
  assert renewed == [0, 0, 3, 3, 3, 6, 6]


def test_iteration_without_a_pair_says_so_and_updates_nothing(tmp_path):
  pairs, said = experiment.replace(RUN, objective=ObjectiveConfig("dpo")), []
  run = online_setup.prepare(
    pairs, tmp_path, loading.load(pairs.prompts, pairs.prompts, {})
  )
  _written(run, tmp_path, 0, 1, np.ones((4, 2)))
  state, line = online.iterate(run, tmp_path, run.state, 0, said.append)
  assert "nothing to learn from, no update; rewards differ on 0%" in said[0]
  assert "loss" not in line and int(state.train.step) == 0 and int(state.step) == 1
