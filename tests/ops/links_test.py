"""Links: values from their formulas, convexity, slope at 0, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import links

links = compiled.module(links)

MARGIN = np.linspace(-6.0, 6.0, 241)

# The formulas as papers print them, in NumPy.
ORACLES = {
  "logistic": lambda m: np.log(1 + np.exp(-m)),
  "hinge": lambda m: np.maximum(0, 1 - m),
  "squared": lambda m: (m - 1) ** 2,
  "exponential": lambda m: np.exp(-m),
  "truncated_quadratic": lambda m: np.maximum(0, 1 - m) ** 2,
  "savage": lambda m: 1 / (1 + np.exp(m)) ** 2,
}

every_link = pytest.mark.parametrize("link", links.LINKS.values(), ids=links.LINKS)


@every_link
def test_values_are_the_formulas(link):
  actual = link.fn(jnp.asarray(MARGIN, jnp.float32))
  np.testing.assert_allclose(actual, ORACLES[link.name](MARGIN), rtol=1e-5, atol=1e-6)


@every_link
def test_recorded_convexity_is_that_of_the_second_differences(link):
  with jax.enable_x64(True):
    loss = np.asarray(link.fn(jnp.asarray(MARGIN)))
  is_convex = np.diff(loss, 2).min() >= -1e-12
  assert link.convex == is_convex
  assert link.convex == (link.name != "savage")


@every_link
def test_recorded_slope_at_0_is_the_gradient(link):
  assert jax.grad(link.fn)(0.0) == pytest.approx(link.slope_at_0)
  assert link.slope_at_0 < 0


@every_link
@pytest.mark.parametrize("margin", [1000.0, -1000.0])
def test_extreme_margins_stay_finite(link, margin):
  loss, slope = jax.value_and_grad(link.fn)(margin)
  assert np.isfinite(loss)
  assert np.isfinite(slope)
  assert margin > 0 or slope <= 0


def test_exponential_continues_along_its_tangent():
  limit = 0.8 * np.log(np.finfo(np.float32).max)
  slope = jax.grad(links.exponential)
  assert slope(-limit - 20) == pytest.approx(float(slope(-limit - 400)))
  assert slope(-limit - 20) == pytest.approx(-np.exp(limit), rel=1e-4)


def test_smoothing_mixes_both_labels():
  m = jnp.asarray([-2.0, 0.0, 3.0])
  expected = 0.8 * np.log1p(np.exp(-m)) + 0.2 * np.log1p(np.exp(m))
  np.testing.assert_allclose(links.smoothed_logistic(m, 0.2), expected, rtol=1e-6)
