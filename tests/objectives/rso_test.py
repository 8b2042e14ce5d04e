"""RSO's two losses."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.ops import links
from xpo_jax.testing import toy


def test_hinge_norm_by_hand():
  # max(0, 1 - 0.05 * (13 - 1))
  out = scored.evaluate(objectives.rso(0.05, links.HINGE), pairs.one(13.0, 1.0))
  assert out.loss == pytest.approx(1 - 0.05 * 12)
  assert set(out.terms) == {"rso"}


def test_sigmoid_norm_is_dpo_at_gamma():
  s = toy.scored(K=2)
  calibrated = scored.evaluate(objectives.rso(), s)
  plain = scored.evaluate(objectives.dpo(0.05), s)
  np.testing.assert_allclose(calibrated.per_example_B, plain.per_example_B, rtol=1e-6)


def test_hinge_norm_oracle():
  s = toy.scored(K=2)
  expected = np.maximum(0, 1 - 2.0 * pairs.gap(s))
  out = scored.evaluate(objectives.rso(2.0, "hinge"), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=2e-5, atol=1e-6)


def test_unknown_link_is_refused_by_its_own_name():
  with pytest.raises(ValueError, match="rso: link='sigmoid' is not known"):
    objectives.rso(link="sigmoid")
