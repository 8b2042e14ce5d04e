"""Verdicts are those of the intervals; paths and frontiers are read as they stand."""

import math

import numpy as np
import pytest
from scipy import stats

from xpo_jax.studies.atlas import table, worlds
from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  Arm,
  Plot,
  Prediction,
  Results,
  Table,
  Verdict,
)
from xpo_jax.studies.exact import sampling

SEEDS = np.array([0.9, 1.4, 1.1, 1.6])
LOW, HIGH = stats.t.interval(0.95, 3, SEEDS.mean(), stats.sem(SEEDS))


def make(predictions, **changes):
  given = {
    "paper": "DPO",
    "method": "dpo",
    "claim": "",
    "where": "",
    "design": "",
    "contrary": "",
    "departs": "",
    "arms": table.sweep("A", sampling.position_bias, "bias", (0.0, 1.0)),
    "predictions": predictions,
    "plot": Plot(None, "agreement", "x", "y", ""),
  }
  return Table(**(given | changes))


def of(values, expected):
  """The outcome of one prediction whose value is given."""
  one = Prediction("x", "", lambda results: values, expected)
  (outcome,) = table.judge(make((one,)), Results((), ()))
  return outcome


@pytest.mark.parametrize(
  ("expected", "verdict"),
  [
    (ABOVE, Verdict.AGREES),
    (BELOW, Verdict.CONTRARY),
    ((LOW - 0.01, HIGH + 0.01), Verdict.AGREES),
    ((LOW + 0.01, math.inf), Verdict.NOT_SEPARABLE),
    ((-math.inf, HIGH - 0.01), Verdict.NOT_SEPARABLE),
    ((HIGH + 0.01, math.inf), Verdict.CONTRARY),
    ((-math.inf, LOW - 0.01), Verdict.CONTRARY),
  ],
)
def test_verdict_is_where_the_students_interval_lies(expected, verdict):
  outcome = of(SEEDS, expected)
  assert outcome.verdict is verdict
  np.testing.assert_allclose(outcome.interval[1:3], (LOW, HIGH))
  assert outcome.interval.mean == pytest.approx(SEEDS.mean())


def test_seed_without_a_value_is_not_testable_and_says_why():
  outcome = of(np.array([1.0, math.nan, 1.0]), ABOVE)
  assert outcome.verdict is Verdict.NOT_TESTABLE
  assert outcome.interval is None and "1 of 3 seeds" in outcome.because


def test_exactly_no_difference_is_no_difference():
  assert of(np.zeros(4), ABOVE).verdict is Verdict.CONTRARY


@pytest.mark.parametrize(
  ("verdicts", "whole"),
  [
    ((Verdict.AGREES, Verdict.AGREES), Verdict.AGREES),
    ((Verdict.AGREES, Verdict.NOT_SEPARABLE), Verdict.NOT_SEPARABLE),
    ((Verdict.NOT_SEPARABLE, Verdict.NOT_TESTABLE), Verdict.NOT_TESTABLE),
    ((Verdict.NOT_TESTABLE, Verdict.CONTRARY), Verdict.CONTRARY),
  ],
)
def test_one_prediction_decides_for_the_table(verdicts, whole):
  outcomes = [of(SEEDS, ABOVE)._replace(verdict=verdict) for verdict in verdicts]
  assert table.verdict(outcomes) is whole


def test_frontier_is_interpolated_seed_by_seed_and_never_beyond_its_ends():
  arms = [Arm("A", strength, sampling.position_bias, {}) for strength in (1.0, 2.0)]
  cells = [
    [{"kl": 0.0, "reward": 1.0}, {"kl": 2.0, "reward": 8.0}],
    [{"kl": 1.0, "reward": 3.0}, {"kl": 1.0, "reward": 4.0}],
  ]
  results = Results(arms, cells)
  np.testing.assert_allclose(results.at("A", "reward", "kl", 0.25), [1.5, math.nan])
  np.testing.assert_allclose(results.at("A", "reward", "kl", 1.5), [math.nan, 6.0])
  np.testing.assert_array_equal(results.metric("A", "reward", 2.0), [3.0, 4.0])


def test_curve_that_comes_back_has_no_one_answer():
  arms = [Arm("A", s, sampling.position_bias, {}) for s in (1.0, 2.0, 3.0, 4.0)]
  cells = [
    [{"x": x, "y": y}] for x, y in ((0.0, 0.0), (2.0, 1.0), (1.0, 5.0), (4.0, 8.0))
  ]
  results = Results(arms, cells)
  np.testing.assert_allclose(results.at("A", "y", "x", 0.5), 0.25)
  np.testing.assert_allclose(results.at("A", "y", "x", 1.5), math.nan)
  np.testing.assert_allclose(results.at("A", "y", "x", 4.0), 8.0)


def test_values_of_predictions_are_differences_and_ratios_of_arms():
  arms = [Arm(s, at, sampling.position_bias, {}) for s in "AB" for at in (0.0, 2.0)]
  cells = [
    [{"root_kl": at, "reward": slope * at + 1.0}]
    for slope in (1.0, 3.0)
    for at in (0.0, 2.0)
  ]
  results = Results(arms, cells)
  pair = (("B", 2.0), ("A", 2.0))
  np.testing.assert_array_equal(table.metric("reward", pair[0])(results), [7.0])
  np.testing.assert_array_equal(table.gap("reward", *pair)(results), [4.0])
  np.testing.assert_array_equal(table.ratio("reward", *pair)(results), [7 / 3])
  one = table.at_equal_kl("B", "A", 0.25)  # a root of 0.5
  np.testing.assert_allclose(one.value(results), [1.0])
  assert one.text == "B minus A, reward at 0.25 nats" and one.range == ABOVE


def test_path_stands_as_an_arm_for_each_step():
  cell = {"step": [5.0, 10.0], "reward": [1.0, 2.0]}
  results = Results([Arm("A", 0.0, sampling.position_bias, {})], [[cell, cell]])
  assert results.arms() == [("A", 5.0), ("A", 10.0)]
  np.testing.assert_array_equal(results.metric("A", "reward", 10.0), [2.0, 2.0])


def test_sweep_sets_one_setting_also_within_another():
  arms = table.sweep(
    "A", sampling.position_bias, "hparams.beta", (0.1, 1.0), hparams={"alpha": 2.0}
  )
  assert [arm.settings["hparams"] for arm in arms] == [
    {"alpha": 2.0, "beta": 0.1},
    {"alpha": 2.0, "beta": 1.0},
  ]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"paper": "DPPO"}, "DPPO"),
    ({"predictions": ()}, "predictions"),
    ({"seeds": 1}, "seeds is 1"),
    ({"arms": (Arm("A", 0.0, sampling.position_bias, {}),) * 2}, "twice"),
  ],
)
def test_table_refuses(change, message):
  one = Prediction("x", "", lambda results: SEEDS, ABOVE)
  with pytest.raises(ValueError, match=message):
    make(**({"predictions": (one,)} | change))


def test_metrics_of_prompts_are_paired_and_their_interval_is_over_prompts():
  rng = np.random.default_rng(0)
  start_P = rng.normal(size=60)
  gain_P = rng.normal(0.3, 0.5, size=60)
  arms = [Arm(name, 0.0, sampling.position_bias, {}) for name in ("start", "DPO")]
  metrics = [[{"reward": list(start_P)}], [{"reward": list(start_P + gain_P)}]]
  gap = table.gap("reward", ("DPO", None), ("start", None))
  one = Prediction("gain", "", gap, ABOVE)
  (outcome,) = table.judge(make((one,)), Results(arms, metrics))
  assert outcome.interval.units == 60
  assert outcome.interval.mean == pytest.approx(gain_P.mean())
  half = stats.t.ppf(0.975, 59) * stats.sem(gain_P)
  assert outcome.interval.high - outcome.interval.low == pytest.approx(
    2 * half, rel=0.15
  )
  assert outcome.verdict is Verdict.AGREES


def test_one_seed_is_enough_for_held_out_prompts_alone():
  one = Prediction("x", "", lambda results: SEEDS, ABOVE)
  make((one,), seeds=1, world=worlds.CHAT_MODEL)
  with pytest.raises(ValueError, match="seeds is 1; an interval needs 2"):
    make((one,), seeds=1)
