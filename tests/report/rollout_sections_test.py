"""The page of a run with rollouts, from files written by hand."""

import json
import math
import shutil

import numpy as np
import pytest
import yaml

from tests.train import written
from xpo_jax.config import yaml_file
from xpo_jax.evaluation import bootstrap, checkpoint_win_rates
from xpo_jax.report import rollout_sections, run_page, training_curves
from xpo_jax.train import rollouts, run_directory

DATA = {
  "kind": "Rollouts",
  "sampling": {"column0_source": "sample", "completions": 3},
  "feedback": {"kind": "scores"},
  "ref_update_every": None,
}
LINES = [
  {
    "step": i + 1,
    "loss": 0.1,
    "rollout/reward": 0.1 * i,
    "rollout/kl": 0.04 * i,
    "rollout/length": 8.0,
    "rollout/abstained": 0.0,
  }
  | ({"eval/kl": 0.25, "eval/reward": 0.5} if i == 3 else {})
  for i in range(4)
]


def _write_config(run, **changes):
  experiment = {"objective": {"name": "rloo", "beta": 0.1}, "data": DATA | changes}
  config = {"format": yaml_file.FORMAT, "experiment": experiment, "versions": {}}
  (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def run(tmp_path):
  _write_config(tmp_path)
  text = "".join(json.dumps(line) + "\n" for line in LINES)
  (tmp_path / "metrics.jsonl").write_text(text)
  for number in range(1, 5):
    path = tmp_path / run_directory.ROLLOUTS / f"{number:06d}.jsonl"
    texts = [["mute", "fine", f"bad {number}…"]]
    rollouts.write(path, written.rollouts([[math.nan, 0.75, -0.25]], texts, number - 1))
  for number, shift in ((0, 0.0), (4, 0.5)):
    path = tmp_path / run_directory.HELD_OUT / f"{number:06d}.jsonl"
    reward = np.array([[0, 1], [0, 1], [0.25, 0.25]]) + shift
    rollouts.write(path, written.rollouts(reward))
  return tmp_path


def test_page_shows_reward_distance_samples_and_checkpoints(run):
  text = run_page.write(run).read_text()
  assert "4 iterations" in text
  for title in ("Reward against distance", "Best of n", "Diversity of the samples"):
    assert f">{title}</text>" in text
  assert "Checkpoints against each other" in text
  assert "Groups inform" not in text  # no such column, no diagnosis of it
  assert "fine (0.75)" in text and "bad 4… … (-0.25)" in text
  assert "mute" not in text
  assert "b0 k0 (0.00)" in text and "b0 k0 (0.50)" in text


def test_a_pattern_is_reported_once(run):
  lines = [
    line | {"step": i + 1, "rollout/length": 8.0 + 4 * i}
    for i, line in enumerate(LINES * 5)
  ]
  (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
  of_rollouts = run_page.write(run).read_text()
  assert of_rollouts.count("Length drift") == 1
  measure = {"low": None, "high": None}
  evaluation = {
    "about": {},
    "policy": {"length": measure | {"mean": 9}},
    "reference": {"length": measure | {"mean": 3}},
    "differences": {},
  }
  (run / "evaluation.json").write_text(json.dumps(evaluation))
  of_both = run_page.write(run).read_text()
  assert of_both.count("Length drift") == 1 and "9.0 tokens" in of_both


def test_a_run_without_rollouts_has_steps_and_no_section_of_samples(run):
  shutil.rmtree(run / run_directory.ROLLOUTS)
  text = run_page.write(run).read_text()
  assert "4 steps" in text and "Samples over time" not in text
  assert "Reward against distance" not in text


def test_reward_stands_over_the_root_of_the_kl(run):
  held_out = {n: rollouts.read(p) for n, p in _held_out(run).items()}
  figure = rollout_sections.reward_kl(LINES, held_out, {0: 0.0, 4: 0.25})
  trained, held_out, best = figure.series
  np.testing.assert_allclose(np.square(trained.x), [0.04 * i for i in range(4)])
  assert held_out.x == [0.0, 0.5] and held_out.labels == ["0", "4"]
  np.testing.assert_allclose(held_out.y, [1.25 / 3, 1.25 / 3 + 0.5])
  np.testing.assert_allclose(np.square(best.x), [0, math.log(2) - 1 / 2])
  np.testing.assert_allclose(best.y, [1.25 / 3, 2.25 / 3])


def test_iterations_that_nobody_judged_are_not_drawn():
  lines = [{"step": 1, "rollout/kl": 1.0}, {"step": 2, "rollout/kl": 4.0}]
  assert rollout_sections.reward_kl(lines, {}, {}) is None
  lines[1]["rollout/reward"] = 0.5
  (series,) = rollout_sections.reward_kl(lines, {}, {}).series
  assert series.x == [2.0] and series.y == [0.5]


def test_best_of_one_is_the_mean(run):
  held_out = {n: rollouts.read(p) for n, p in _held_out(run).items()}
  figure = rollout_sections.best_of_n(held_out)
  assert [series.name for series in figure.series] == [
    "the start",
    "after 4 iterations",
  ]
  for series, drawn in zip(figure.series, held_out.values(), strict=True):
    assert list(series.x) == [1, 2]
    assert series.y[0] == pytest.approx(drawn.reward_BK.mean())
    assert series.y[1] == pytest.approx(drawn.reward_BK.max(1).mean())


def _held_out(run):
  return {n: run / run_directory.HELD_OUT / f"{n:06d}.jsonl" for n in (0, 4)}


def test_win_rates_are_not_drawn_as_rewards(run):
  _write_config(run, feedback={"kind": "win_rates"})
  text = run_page.write(run).read_text()
  assert "Win rate against distance" in text and "win rate against the start" in text
  assert ">Best of n</text>" not in text and ">trained on</text>" not in text
  assert "Checkpoints against each other" not in text


def test_measured_win_rates_come_before_those_of_the_feedback(run):
  rate = bootstrap.Interval(0.625, 0.5, math.nan, 0.1, 3)
  content = {
    "judge": "some:one",
    "rates": [
      {"row": 0, "column": 4, **bootstrap.plain(rate)},
      {"row": 4, "column": 0, **bootstrap.plain(rate)},
    ],
  }
  (run / checkpoint_win_rates.WIN_RATES).write_text(json.dumps(content))
  judge, rates = checkpoint_win_rates.read(run)
  assert judge == "some:one" and rates[0][4].mean == 0.625
  assert math.isnan(rates[0][4].high)
  text = run_page.write(run).read_text()
  assert "Judged by some:one" in text and "0.625 [0.5" in text


def test_run_that_samples_nothing_out_is_shown_too(run):
  for path in _held_out(run).values():
    path.unlink()
  text = run_page.write(run).read_text()
  assert "Reward against distance" in text and "Held-out prompts" not in text


def test_charts_of_a_loop_have_units_and_leave_zeros_out():
  figures = {
    figure.title: figure for figure in training_curves.figures(LINES, "iteration")
  }
  assert figures["Reward"].x_label == "iteration"
  names = [series.name for series in figures["Reward"].series]
  assert names == ["samples", "held-out reward"]
  assert figures["KL to the reference"].y_label == "nats per completion"
  assert "Without a verdict" not in figures


def test_no_two_curves_of_a_chart_share_a_name():
  columns = {name: 1.0 for _, _, names in training_curves.CHARTS for name in names}
  for figure in training_curves.figures([columns | {"step": 1}]):
    names = [series.name for series in figure.series]
    assert len(set(names)) == len(names), figure.title
