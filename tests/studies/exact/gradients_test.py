"""The estimators' moments against what enumeration gives."""

import numpy as np
import pytest

from xpo_jax.studies.exact import gradients


@pytest.fixture(scope="module")
def variance():
  """Of REINFORCE with a running mean, at three spreads of difficulty."""

  def at(offset):
    return gradients.estimator(
      0, objective="reinforce", hparams={"beta": None}, offset=offset, draws=200
    )["variance"]

  return [float(at(offset)) for offset in (0.0, 4.0, 8.0)]


def test_running_mean_pays_for_the_square_of_the_spread(variance):
  """A reward's mean of the prompt's own adds its square to the second moment."""
  none, some, more = variance
  np.testing.assert_allclose((more - none) / (some - none), 4, rtol=0.15)


def test_leave_one_out_does_not_see_a_prompts_mean_and_is_unbiased():
  found = [
    gradients.estimator(
      0, objective="rloo", hparams={"beta": None}, offset=offset, draws=200
    )
    for offset in (0.0, 8.0)
  ]
  assert found[0]["variance"] == pytest.approx(float(found[1]["variance"]), rel=1e-3)
  # The mean of 180 batches deviates by the root of variance / 180.
  assert found[0]["bias"] < 1.2 * np.sqrt(found[0]["variance"] / 180)
