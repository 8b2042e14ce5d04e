"""Each pattern of an online run, on numbers that have it and that have it not."""

import numpy as np
import pytest

from xpo_jax.report import diagnostics, rollout_diagnostics

HEALTHY = {
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


def _run(**changes):
  rng = np.random.default_rng(0)
  steps = 60
  lines = [{"step": i + 1, "loss": 0.0} for i in range(steps)]
  columns = HEALTHY | {
    f"rollout/{n}" if f"rollout/{n}" in HEALTHY else n: x for n, x in changes.items()
  }
  for name, (start, end, noise) in columns.items():
    values = np.linspace(start, end, steps) + noise * rng.normal(size=steps)
    for line, value in zip(lines, values, strict=True):
      line[name] = float(value)
  return lines


def _found(lines):
  return {v.name: v for v in rollout_diagnostics.judge(lines)}


def test_healthy_run_has_no_warning():
  found = _found(_run())
  assert {v.level for v in found.values()} == {diagnostics.GOOD}
  assert {"KL within bounds", "Reward rises", "Groups inform"} <= set(found)
  assert {"Entropy holds", "Length holds", "Value informs"} <= set(found)


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
def test_pattern_is_named_with_meaning_and_remedy(changes, name, level):
  found = _found(_run(**changes))[name]
  assert found.level == level
  assert found.meaning and found.remedy


def test_iterations_without_an_update_are_counted():
  lines = _run()
  for line in lines[3:5]:
    del line["loss"]
  assert "2 iterations" in _found(lines)["Few informative groups"].seen


def test_few_iterations_say_nothing_of_a_change():
  names = set(_found(_run(kl=(0, 12, 0.1))[:5]))
  assert names == {"Groups inform"}
  assert rollout_diagnostics.judge([]) == []


def test_nothing_is_read_into_win_rates_or_single_completions():
  lines = _run(informative=(0, 0, 0), reward=(1, 0, 0.05))
  names = {v.name for v in rollout_diagnostics.judge(lines, 1, by_score=False)}
  assert "KL within bounds" in names
  assert not {"Reward falls", "Few informative groups"} & names
