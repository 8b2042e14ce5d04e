"""SPIN."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.ops import links
from xpo_jax.testing import toy

FORMULAS = {
  "logistic": lambda t: np.log1p(np.exp(-t)),
  "hinge": lambda t: np.maximum(1 - t, 0),
  "exponential": lambda t: np.exp(-t),
  "truncated_quadratic": lambda t: np.maximum(1 - t, 0) ** 2,
}


def check(link="logistic"):
  s = toy.scored(K=2)
  expected = FORMULAS[link](0.7 * pairs.gap(s))
  out = scored.evaluate(objectives.spin(0.7, link), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=2e-5)
  assert set(out.terms) == {"spin"}


@pytest.mark.parametrize("link", FORMULAS)
def test_oracle(link):
  check(link)


@pytest.mark.parametrize("link", [links.SQUARED, links.SAVAGE, "squared"])
def test_link_that_the_theorems_do_not_cover_is_refused(link):
  with pytest.raises(ValueError, match=r"spin: link=.*logistic, hinge, exponential"):
    objectives.spin(link=link)
