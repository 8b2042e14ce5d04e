"""Policies along runs: what is judged, shared, kept, and does not depend on order."""

import dataclasses
import operator
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.quiet import quiet
from tests.studies.tiny_task import TINY
from xpo_jax.config.data import Prompts
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.feedback import rules
from xpo_jax.studies import task as tasks
from xpo_jax.studies.frontier import (
  fixed_completions,
  frontier_page,
  labelled_samples,
  online_frontier,
  processes,
)
from xpo_jax.studies.frontier.frontier_page import OrderingClaim
from xpo_jax.studies.frontier.online_frontier import FrontierPoint, JudgedRun
from xpo_jax.studies.multistage import arms, preference_pairs, samples
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a study of online runs."""

  task: Task = TINY
  jobs: int = 1
  show: bool = False


def rloo(seed: int, iterations: int = 2) -> JudgedRun:
  """A run on rollouts, judged after every iteration; words are its further score."""
  made = tasks.on_rollouts(
    ObjectiveConfig("rloo", beta=0.1),
    TINY,
    iterations=iterations,
    prompts_per_iteration=2,
    sampling=Sampling(completions=2, max_completion_tokens=4),
  )
  one = online_frontier.on_task(made, TINY, seed=seed)
  one = online_frontier.with_checkpoints(one, 1)
  return JudgedRun("rloo", seed, one, scorers={"words": Configured(rules.length)})


def dpo(beta: float) -> JudgedRun:
  """A run on pairs of the start's samples, judged at its end."""
  pairs = Configured(
    preference_pairs.ranked,
    policy=tasks.start_weights(TINY),
    prompts=tasks.prompts(TINY),
    reward=Configured(rules.length),
    max_completion_tokens=TINY.max_completion_tokens,
    candidates=2,
    kept=2,
    rejection_beta=None,
    num_prompts=TINY.num_prompts,
  )
  one = tasks.on_records(ObjectiveConfig("dpo", beta=beta), TINY, pairs)
  return JudgedRun("dpo", 0, one, strength=beta)


RUNS = [JudgedRun("SFT", 0, None), rloo(0), rloo(1), dpo(1.0), dpo(0.1)]


def _measured(run_dir: Path, runs):
  study = online_frontier.open_study(Settings(), run_dir, quiet)
  assert online_frontier.measure_all(study, runs, jobs=1) == {}
  return study, online_frontier.read(study, runs)


def _written(run_dir: Path) -> dict[str, int]:
  files = [path for path in run_dir.rglob("*") if path.is_file()]
  return {str(path.relative_to(run_dir)): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  """The study, the points of its runs, and what was written."""
  run_dir = tmp_path_factory.mktemp("runs") / "study"
  study, points = _measured(run_dir, RUNS)
  return study, points, _written(run_dir)


def test_points_lead_from_the_start_to_the_last_policy(measured):
  _, points, _ = measured
  assert list(points) == ["SFT", "rloo", "dpo"] and list(points["rloo"]) == [0, 1]
  along = points["rloo"][0]
  assert [p.strength for p in along] == [0, 1, 2]
  np.testing.assert_allclose(along[0].kl_P, 0, atol=1e-5)
  assert 0 == along[0].seconds < along[1].seconds < along[2].seconds
  assert along[1].kl_P.mean() != along[2].kl_P.mean() > 1e-6
  np.testing.assert_array_equal(along[0].reward_P, points["SFT"][0][0].reward_P)
  assert all(len(p.column("words")) == TINY.eval_prompts for p in along)


def test_runs_of_an_arm_are_ordered_by_strength(measured):
  _, points, _ = measured
  assert [p.strength for p in points["dpo"][0]] == [0.1, 1.0]


def test_all_runs_share_one_start(measured):
  study, _, _ = measured
  stages = sorted(path.name.partition("-")[0] for path in study.store.iterdir())
  assert stages == ["dpo", "dpo", "rloo", "rloo", "sft"]


def test_points_do_not_depend_on_the_order_of_the_runs(measured, tmp_path):
  _, points, _ = measured
  _, reversed_points = _measured(tmp_path / "reversed", RUNS[::-1])
  assert set(reversed_points) == set(points)
  for label, seeds in points.items():
    for seed, along in seeds.items():
      for one, other in zip(along, reversed_points[label][seed], strict=True):
        for column in ("reward", "kl", "length", *one.scores):
          np.testing.assert_array_equal(one.column(column), other.column(column))


def test_what_was_measured_is_not_measured_again(measured):
  study, _, before = measured
  assert online_frontier.measure_all(study, RUNS, jobs=1) == {}
  assert _written(study.run_dir) == before


def test_points_of_another_run_are_not_read(measured):
  study, _, _ = measured
  assert online_frontier.read(study, [rloo(0, iterations=3)]) == {}


def test_stages_of_several_runs_are_trained_before_any_process(tmp_path, monkeypatch):
  trained = []
  monkeypatch.setattr(arms, "train", lambda study, one: trained.append(one))
  monkeypatch.setattr(processes, "call_all", lambda planned, jobs: sorted(planned))
  study = arms.Arms(TINY, tmp_path, quiet)
  model = tasks.Stage(dpo(1.0).experiment)
  shared = Configured(fixed_completions.win_rate, completion="", preference=model)
  runs = [
    rloo(0),
    rloo(1)._replace(scorers={"shared": shared}),
    rloo(2)._replace(scorers={"shared": shared}),
  ]
  planned = online_frontier.measure_all(study, runs, jobs=2)
  assert planned == ["rloo, seed 0", "rloo, seed 1", "rloo, seed 2"]
  assert trained == [tasks.sft(TINY), dpo(1.0).experiment]


def test_how_a_study_is_carried_out_is_no_setting_of_it(tmp_path):
  run_dir = tmp_path / "run"
  with pytest.raises(ValueError, match="no points to show; run it without --show"):
    online_frontier.open_study(Settings(show=True), run_dir)
  assert not run_dir.exists()
  online_frontier.open_study(Settings(jobs=1), run_dir)
  online_frontier.open_study(Settings(jobs=2), run_dir)
  wider = dataclasses.replace(TINY, seeds=(0, 1))
  online_frontier.open_study(Settings(wider), run_dir)
  with pytest.raises(ValueError, match="eval_prompts: 4 -> 5"):
    online_frontier.open_study(
      Settings(dataclasses.replace(wider, eval_prompts=5)), run_dir
    )


def _points(label, values_SP, kl=1.0):
  one = np.ones(values_SP.shape[1])
  return {
    s: [FrontierPoint(label, s, 1, 0.0, v_P, kl * one, one, {})]
    for s, v_P in enumerate(values_SP)
  }


def test_differences_are_paired_over_the_seeds_that_both_have():
  rng = np.random.default_rng(0)
  a_SP, b_SP = rng.normal(size=(2, 3, 5))
  a, b = (
    [p for points in _points(*x).values() for p in points]
    for x in (("a", a_SP), ("b", b_SP[:2]))
  )
  difference = online_frontier.gap(a, b, "reward")
  assert difference.mean == pytest.approx((a_SP[:2] - b_SP[:2]).mean())
  assert online_frontier.gap(a[2:], b, "reward") is None


def test_claims_about_last_policies_are_read_off_their_intervals():
  low, high = np.zeros((2, 4)), np.ones((2, 4))
  points = {"a": _points("a", high, kl=2.0), "b": _points("b", low)}
  points["c"] = {7: [p._replace(seed=7) for p in _points("c", low)[0]]}
  claims = [
    OrderingClaim("paper", "a wins", "a", "b"),
    OrderingClaim("paper", "b wins", "b", "a"),
    OrderingClaim("paper", "as long", "a", "b", column="length"),
    OrderingClaim("paper", "other seeds", "a", "c"),
    OrderingClaim("paper", "not run", "a", "d"),
  ]
  rows = frontier_page.final_claims_table(claims, points).rows
  assert [row[3].partition(":")[0] for row in rows] == [
    "reproduces here",
    "does not reproduce here",
    "not separable here",
    "cannot be compared",
  ]
  assert rows[0][2] == "reward, a - b: 1.000 [1.000, 1.000]; 2.00 and 1.00 nats"


def test_calls_in_processes_go_on_when_one_fails():
  lines = []
  calls = {"good": (operator.truediv, 1, 1), "bad": (operator.truediv, 1, 0)}
  failed = processes.call_all(calls, jobs=2, say=lines.append)
  assert failed == {"bad": "ZeroDivisionError: division by zero"}
  assert sorted(line.split("] ")[1].split(":")[0] for line in lines) == sorted(calls)
  assert processes.call_all(calls, jobs=1, say=lines.append) == failed
  assert processes.exit_code(failed) == 1 and processes.exit_code({}) == 0
  # A signal is no failure of a call: it ends the study, once the others are done.
  calls = {"stopped": (signal.raise_signal, signal.SIGINT), **calls}
  lines.clear()
  with pytest.raises(KeyboardInterrupt):
    processes.call_all(calls, jobs=2, say=lines.append)
  assert sorted(line.split("] ")[1].split(":")[0] for line in lines) == sorted(calls)


@pytest.fixture
def sampled(monkeypatch):
  """Samples of 400 prompts without a policy: the first is longer, the second better."""

  def sample(policy, prompts, *, completions, max_completion_tokens, seed, temperature):
    del policy, max_completion_tokens, seed, temperature
    assert completions == 2
    return samples.Sampled(tuple(prompts), (("a b c", "good"),) * len(prompts))

  monkeypatch.setattr(samples, "sample", sample)
  monkeypatch.setattr(
    samples, "texts_of", lambda prompts, start, stop: [f"p{i}" for i in range(stop)]
  )


def _misspecified(half, length_logit=0.0, num_pairs=1000):
  return labelled_samples.misspecified(
    "",
    Prompts("texts"),
    rules.matches("good"),
    half,
    max_completion_tokens=4,
    num_pairs=num_pairs,
    temperature=0.5,
    length_logit=length_logit,
    num_prompts=400,
  )


def test_halves_of_labels_are_disjoint_and_no_longer_than_asked(sampled):
  train, test = _misspecified("train"), _misspecified("test")
  assert {p.uid for p in train}.isdisjoint(p.uid for p in test)
  assert len(train) == len(test) == 200
  assert _misspecified("test", num_pairs=3) == test[:3]


def test_labels_follow_reward_and_length(sampled):
  def longer(length_logit):
    pairs = _misspecified("train", length_logit) + _misspecified("test", length_logit)
    return np.mean([p.chosen == "a b c" for p in pairs])

  assert longer(0.0) == pytest.approx(1 / (1 + np.exp(2)), abs=0.05)  # a reward of 1
  assert longer(1.0) == pytest.approx(0.5, abs=0.07)  # two words outweigh it


def test_labels_follow_a_preference(sampled):
  prefer_second = rules.bradley_terry(rules.matches("good"), temperature=0)
  pairs = labelled_samples.by_preference(
    "", Prompts("texts"), prefer_second, max_completion_tokens=4, num_prompts=5
  )
  assert [(p.chosen, p.rejected) for p in pairs] == [("good", "a b c")] * 5


def test_fixed_completion_is_scored_by_its_win_rate():
  win_rate = fixed_completions.win_rate(
    "good", rules.bradley_terry(rules.matches("good"), temperature=0)
  )
  found = win_rate(["x", "y"], ["bad", "good"]).value_N
  np.testing.assert_array_equal(found, [1.0, 0.5])
