"""Each pattern on a run that has it and on one that has not."""

import math

import numpy as np
import pytest

from xpo_jax.report import diagnostics

# A sound run that learns from its own samples.
ROLLOUTS = {
  "rollout/reward": (0, 1, 0.05),
  "rollout/kl": (0, 2, 0.05),
  "rollout/length": (10, 10, 0.2),
  "rollout/no_eos": (0.01, 0.01, 0),
  "rollout/frac_informative_prompts": (1, 0.8, 0.02),
  "rollout/abstained": (0, 0, 0),
  "entropy": (2, 1.8, 0.02),
  "clip_fraction": (0.05, 0.05, 0),
  "explained_variance": (-0.5, 0.4, 0.05),
}


def _lines(steps, loss, columns):
  rng = np.random.default_rng(0)
  lines = [{"step": i + 1, "loss": loss} for i in range(steps)]
  for name, (start, end, noise) in columns.items():
    values = np.linspace(start, end, steps) + noise * rng.normal(size=steps)
    for line, value in zip(lines, values, strict=True):
      line[name] = float(value)
  return lines


def _records(**columns):
  renamed = {name.replace("__", "/"): x for name, x in columns.items()}
  return _lines(100, math.log(2), renamed)


def _rollouts(**changes):
  names = {name.removeprefix("rollout/"): name for name in ROLLOUTS}
  return _lines(60, 0.0, ROLLOUTS | {names[n]: x for n, x in changes.items()})


def _evaluation(**ratios):
  reference = {"length": 10.0, "distinct_2": 0.5, "no_eos": 0.0}
  policy = {name: value * ratios.get(name, 1) for name, value in reference.items()}
  policy["no_eos"] = ratios.get("no_eos", 0.0)
  as_json = lambda m: {name: {"mean": value} for name, value in m.items()}  # noqa: E731
  return {"policy": as_json(policy), "reference": as_json(reference)}


def _by_name(*args):
  return {one.name: one for one in diagnostics.diagnose(*args)}


def _levels(*args):
  return {name: one.level for name, one in _by_name(*args).items()}


@pytest.mark.parametrize(
  ("lines", "evaluation", "name"),
  [
    (
      _records(logp_chosen=(-20, -23, 0.5), logp_rejected=(-20, -26, 0.5)),
      None,
      "Chosen log-prob falling",
    ),
    (_records(reward_accuracy=(0.5, 1.04, 0)), None, "Saturated accuracy"),
    (
      _records(reward_accuracy=(0.5, 0.9, 0), eval__reward_accuracy=(0.5, 0.7, 0)),
      None,
      "Accuracy only on training pairs",
    ),
    (_records(), _evaluation(length=1.5), "Length drift"),
    (_records(), _evaluation(length=0.5), "Length drift"),
    (_records(), _evaluation(distinct_2=0.4), "Repetition"),
    (_records(), _evaluation(no_eos=0.4), "Completions do not end"),
  ],
)
def test_pattern_is_named_with_meaning_and_remedy(lines, evaluation, name):
  diagnosis = _by_name(lines, evaluation)[name]
  assert diagnosis.level == diagnostics.WARNING
  assert diagnosis.meaning and diagnosis.remedy


@pytest.mark.parametrize(
  ("changes", "name", "level"),
  [
    ({"kl": (0, 12, 0.1)}, "KL runaway", diagnostics.WARNING),
    ({"reward": (0, 0, 0.05)}, "Reward does not move", diagnostics.NOTE),
    ({"reward": (1, 0, 0.05)}, "Reward falls", diagnostics.WARNING),
    ({"reward": (1, 1, 0.05)}, "KL grows, reward does not", diagnostics.NOTE),
    (
      {"frac_informative_prompts": (1, 0, 0.0)},
      "Few informative groups",
      diagnostics.WARNING,
    ),
    ({"length": (10, 15, 0.2)}, "Length drift", diagnostics.WARNING),
    ({"length": (10, 5, 0.2)}, "Length drift", diagnostics.WARNING),
    ({"no_eos": (0, 0.5, 0)}, "Completions do not end", diagnostics.WARNING),
    ({"entropy": (2, 0.2, 0.02)}, "Entropy collapse", diagnostics.WARNING),
    ({"abstained": (0.2, 0.2, 0)}, "Judge abstains", diagnostics.WARNING),
    ({"clip_fraction": (0, 0.6, 0)}, "Updates beyond the clip", diagnostics.WARNING),
    (
      {"explained_variance": (0, -0.3, 0.05)},
      "Value explains nothing",
      diagnostics.NOTE,
    ),
  ],
)
def test_pattern_of_rollouts_is_named_with_meaning_and_remedy(changes, name, level):
  diagnosis = _by_name(_rollouts(**changes))[name]
  assert diagnosis.level == level
  assert diagnosis.meaning and diagnosis.remedy


def test_sound_run_on_records_has_no_warning():
  lines = _records(
    logp_chosen=(-20, -20, 0.5),
    logp_rejected=(-20, -23, 0.5),
    reward_accuracy=(0.5, 0.75, 0.05),
    eval__reward_accuracy=(0.5, 0.72, 0.0),
    reward_margin=(0, 1.0, 0.1),
  )
  levels = _levels(lines, _evaluation(), math.log(2))
  assert set(levels.values()) == {diagnostics.GOOD}
  assert "First loss as it must be" in levels


def test_sound_run_on_rollouts_has_no_warning():
  levels = _levels(_rollouts())
  assert set(levels.values()) == {diagnostics.GOOD}
  assert {"KL within bounds", "Reward rises", "Groups inform"} <= set(levels)
  assert {"Entropy holds", "Length holds", "Value informs"} <= set(levels)


def test_every_diagnostic_says_which_numbers_it_needs():
  for diagnostic in diagnostics.DIAGNOSTICS:
    assert bool(diagnostic.metrics) != bool(diagnostic.measures), diagnostic


def test_pattern_is_looked_for_only_where_its_numbers_are():
  lines = _records(entropy=(6.0, 1.0, 0.0))  # of the data, not of samples
  assert "Entropy collapse" not in _levels(lines)
  evaluation = _evaluation(length=1.5)
  del evaluation["reference"]["length"]
  assert "Length drift" not in _levels(lines, evaluation)


def test_fall_within_the_noise_is_no_fall():
  lines = _records(logp_chosen=(-20, -20.8, 4.0), logp_rejected=(-20, -23, 4.0))
  assert "Chosen log-prob falling" not in _levels(lines)


def test_wrong_first_loss_warns():
  lines = _records()
  lines[0]["loss"] = math.log(2) + 0.01
  levels = _levels(lines, None, math.log(2))
  name = "First loss not what policy = reference demands"
  assert levels[name] == diagnostics.WARNING


def test_first_loss_of_a_resumed_file_is_not_checked():
  lines = _records()[10:]
  assert not any("First loss" in name for name in _levels(lines, None, 1.0))


def test_margin_that_stays_is_noted():
  levels = _levels(_records(reward_margin=(0, 0, 0.1)))
  assert levels["Margin does not move"] == diagnostics.NOTE


def test_warnings_come_first():
  lines = _records(logp_chosen=(-20, -23, 0.5), logp_rejected=(-20, -26, 0.5))
  levels = list(_levels(lines, _evaluation(), math.log(2)).values())
  assert levels[0] == diagnostics.WARNING and levels[-1] == diagnostics.GOOD


def test_pattern_that_the_evaluation_has_is_not_reported_again_of_the_rollouts():
  lines = _rollouts(length=(10, 15, 0.2))
  diagnoses = diagnostics.diagnose(lines, _evaluation(length=2.0))
  (drift,) = (one for one in diagnoses if one.name == "Length drift")
  assert "reference 10.0" in drift.seen
  # A drift over the run is another diagnosis than lengths that hold at its end.
  names = set(_levels(lines, _evaluation()))
  assert {"Length drift", "Length holds"} <= names


def test_iterations_without_an_update_are_counted():
  lines = _rollouts()
  for line in lines[3:5]:
    del line["loss"]
  assert "2 iterations" in _by_name(lines)["Few informative groups"].seen


def test_few_iterations_say_nothing_of_a_change():
  assert set(_levels(_rollouts(kl=(0, 12, 0.1))[:5])) == {"Groups inform"}


def test_nothing_is_read_into_win_rates_or_single_completions():
  data = {"feedback": {"kind": "win_rates"}, "sampling": {"completions": 1}}
  ignored = diagnostics.ignored_metrics({"data": data})
  lines = _rollouts(frac_informative_prompts=(0, 0, 0), reward=(1, 0, 0.05))
  names = set(_levels(lines, None, None, ignored))
  assert "KL within bounds" in names
  assert not {"Reward falls", "KL grows, reward does not"} & names
  assert "Few informative groups" not in names
  for feedback, completions in (("scores", 1), ("win_rates", 4)):
    data = {"feedback": {"kind": feedback}, "sampling": {"completions": completions}}
    assert len(diagnostics.ignored_metrics({"data": data})) == 1
  assert not diagnostics.ignored_metrics({"data": {"path": "pairs.jsonl"}})


def test_no_numbers_give_no_diagnosis():
  assert diagnostics.diagnose([]) == []
