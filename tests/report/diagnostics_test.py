"""Each pattern on a run that has it and on one that has not."""

import math

import numpy as np
import pytest

from xpo_jax.report import diagnostics


def _run(steps=100, **columns):
  rng = np.random.default_rng(0)
  t = np.linspace(0, 1, steps)
  lines = [{"step": i + 1, "loss": math.log(2)} for i in range(steps)]
  for name, (start, end, noise) in columns.items():
    values = start + (end - start) * t + noise * rng.normal(size=steps)
    for line, value in zip(lines, values, strict=True):
      line[name.replace("__", "/")] = float(value)
  return lines


def _evaluation(**ratios):
  reference = {"length": 10.0, "distinct_2": 0.5, "no_eos": 0.0}
  policy = {name: value * ratios.get(name, 1) for name, value in reference.items()}
  policy["no_eos"] = ratios.get("no_eos", 0.0)
  as_json = lambda m: {name: {"mean": value} for name, value in m.items()}  # noqa: E731
  return {"policy": as_json(policy), "reference": as_json(reference)}


def _levels(*args):
  return {v.name: v.level for v in diagnostics.judge(*args)}


@pytest.mark.parametrize(
  ("metrics", "evaluation", "name"),
  [
    (
      _run(logp_chosen=(-20, -23, 0.5), logp_rejected=(-20, -26, 0.5)),
      None,
      "Chosen log-prob falling",
    ),
    (_run(reward_accuracy=(0.5, 1.04, 0)), None, "Saturated accuracy"),
    (
      _run(reward_accuracy=(0.5, 0.9, 0), eval__reward_accuracy=(0.5, 0.7, 0)),
      None,
      "Accuracy only on training pairs",
    ),
    (_run(), _evaluation(length=1.5), "Length drift"),
    (_run(), _evaluation(length=0.5), "Length drift"),
    (_run(), _evaluation(distinct_2=0.4), "Repetition"),
    (_run(), _evaluation(no_eos=0.4), "Completions do not end"),
  ],
)
def test_pattern_is_named_with_meaning_and_remedy(metrics, evaluation, name):
  found = {v.name: v for v in diagnostics.judge(metrics, evaluation)}
  assert found[name].level == diagnostics.WARNING
  assert found[name].meaning and found[name].remedy


def test_healthy_run_has_no_warning():
  metrics = _run(
    logp_chosen=(-20, -20, 0.5),
    logp_rejected=(-20, -23, 0.5),
    reward_accuracy=(0.5, 0.75, 0.05),
    eval__reward_accuracy=(0.5, 0.72, 0.0),
    reward_margin=(0, 1.0, 0.1),
  )
  levels = _levels(metrics, _evaluation(), math.log(2))
  assert set(levels.values()) == {diagnostics.GOOD}
  assert "First loss as it must be" in levels


def test_fall_within_the_noise_is_no_fall():
  metrics = _run(logp_chosen=(-20, -20.8, 4.0), logp_rejected=(-20, -23, 4.0))
  assert "Chosen log-prob falling" not in _levels(metrics)


def test_wrong_first_loss_warns():
  metrics = _run()
  metrics[0]["loss"] = math.log(2) + 0.01
  assert (
    _levels(metrics, None, math.log(2))[
      "First loss not what policy = reference demands"
    ]
    == diagnostics.WARNING
  )


def test_first_loss_of_a_resumed_file_is_not_judged():
  metrics = _run()[10:]
  assert not any("First loss" in name for name in _levels(metrics, None, 1.0))


def test_margin_that_stays_is_noted():
  assert (
    _levels(_run(reward_margin=(0, 0, 0.1)))["Margin does not move"] == diagnostics.NOTE
  )


def test_warnings_come_first():
  metrics = _run(logp_chosen=(-20, -23, 0.5), logp_rejected=(-20, -26, 0.5))
  levels = [v.level for v in diagnostics.judge(metrics, _evaluation(), math.log(2))]
  assert levels[0] == diagnostics.WARNING and levels[-1] == diagnostics.GOOD


def test_no_metrics_give_no_verdicts():
  assert diagnostics.judge([]) == []
