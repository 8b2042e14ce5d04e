"""Harmful completions: limits of the losses that push them down."""

import numpy as np
import pytest

from xpo_jax.studies.exact import negatives


def _anchored(alpha):
  return negatives.avoid(
    0,
    objective="d2o",
    hparams={"beta": 1.0, "alpha": alpha},
    samples=100,
    steps=60,
  )


def test_npo_without_a_tie_is_gradient_ascent():
  npo = negatives.avoid(0, objective="npo", hparams={"beta": 1e-4}, count=30, steps=30)
  ascent = negatives.avoid(
    0,
    objective="nll",
    hparams={"reduction": "sequence_sum"},
    sign=-1.0,
    count=30,
    steps=30,
  )
  for name in ("harm", "benign_kl"):
    np.testing.assert_allclose(npo[name], ascent[name], rtol=0.02, atol=1e-4)


def test_harm_begins_as_a_quarter_and_falls():
  found = _anchored(1.0)
  assert found["harm"][0] == pytest.approx(3 / 12, abs=0.1)
  assert found["harm"][-1] < found["harm"][0] / 2
  assert (found["benign_kl"] > 0).all()


def test_anchors_alone_hold_the_policy_at_the_first():
  """With little weight on the harmful one, samples of the reference are a tie to it."""
  held, freed = (_anchored(alpha)["benign_kl"][-1] for alpha in (1e-3, 1.0))
  assert held < freed / 5
