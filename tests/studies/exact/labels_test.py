"""Cells on single completions, lists and completions to forget."""

import numpy as np
import pytest

from xpo_jax.studies.exact import labels


def test_regression_with_a_value_ends_at_the_optimum():
  found = labels.regression(0, objective="dro", hparams={"beta": 1.0})
  assert found["distance"] < 0.01
  assert found["value_error"] < 0.02


def test_weight_of_thumbs_up_has_no_effect_where_none_are_kept():
  def reward(kept, weight):
    hparams = {"beta": 0.3, "desirable_weight": weight, "undesirable_weight": 1.0}
    found = labels.thumbs(
      0, objective="kto", hparams=hparams, kept=kept, count=600, steps=60
    )
    return float(found["reward"])

  assert reward(0.0, 1.0) == reward(0.0, 10.0) < reward(1.0, 1.0)
  assert reward(1.0, 1.0) != reward(1.0, 10.0)


def test_lists_of_two_are_pairs():
  """Plackett-Luce of two completions is DPO on the better and the worse."""
  given = {"hparams": {"beta": 0.3}, "size": 2, "count": 100, "steps": 30}
  pair, ranked = (
    labels.lists(0, objective=name, **given) for name in ("dpo", "plackett_luce")
  )
  for name in pair:
    assert pair[name] == pytest.approx(float(ranked[name]), rel=1e-4, abs=1e-5)


def test_ascent_moves_in_proportion_to_its_updates():
  found = labels.unlearning(
    0,
    objective="nll",
    hparams={"reduction": "sequence_sum"},
    sign=-1.0,
    iterations=400,
  )
  step, distance = np.asarray(found["step"]), np.asarray(found["distance"])
  ratio = distance[-1] / distance[-2] / (step[-1] / step[-2])
  assert ratio == pytest.approx(1, abs=0.1)
  assert found["forgotten"][-1] < found["forgotten"][0] < 0
