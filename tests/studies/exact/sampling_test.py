"""Laws of rejection sampling and of a biased labeller."""

import numpy as np
from scipy import stats

from xpo_jax.studies.exact import sampling


def test_first_accepted_of_many_follows_the_target():
  few, many = (sampling.rejection(0, candidates=n, draws=1000) for n in (4, 512))
  assert abs(many["distance"] - many["chance"]) < 0.03 < few["distance"]
  assert many["chance"] < few["distance"] < few["start"]


def _agreement(verdicts, **settings):
  return sampling.position_bias(0, verdicts=verdicts, **settings)["agreement"]


def test_agreement_of_an_unbiased_noiseless_labeller_is_that_of_the_labels():
  """Pr(the better one wins) = E sigma(|gap|), by quadrature."""
  x = np.linspace(-12, 12, 4001)
  expected = (stats.norm.pdf(x, 0, 2) / (1 + np.exp(-abs(x)))).sum() * (x[1] - x[0])
  for verdicts in ("one", "both orders", "two of one order"):
    found = _agreement(verdicts, bias=0.0, noise=0.0, pairs=40_000)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_both_orders_cancel_the_bias():
  one, both = (_agreement(x, bias=3.0, noise=0.0) for x in ("one", "both orders"))
  assert one < both - 0.1
  clean = _agreement("both orders", bias=0.0, noise=0.0)
  np.testing.assert_allclose(both, clean, atol=0.02)
