"""BCO with underlying distribution matching."""

import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives


def record(ratio, desirable, weight):
  """Single completions with these log-ratios."""
  ratio, label, weight = (np.array(x)[:, None] for x in (ratio, desirable, weight))
  return scored.from_sequence_logps(
    ratio,
    np.ones_like(ratio),
    0 * ratio,
    desirable_BK=label,
    prompt_weight_BK=weight,
  )


def check():
  o = objectives.bco_udm(beta=0.5)
  s = record([4.0, -2.0, 1.0], [1, 0, 0], [1.0, 3.0, 0.5])
  out = scored.evaluate(o, s, o.init())
  d = 0.5 * (4 - 2 + 1) / 3  # not weighted
  expected = [
    -special.log_expit(0.5 * 4 - d),
    -3.0 * special.log_expit(d - 0.5 * -2),
    -0.5 * special.log_expit(d - 0.5 * 1),
  ]
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-6)
  assert out.loss == pytest.approx(np.mean(expected))
  assert out.metrics["prompt_weight_chosen"] == 1
  assert out.metrics["prompt_weight_rejected"] == pytest.approx(1.75)


def test_by_hand():
  check()


def test_weights_of_1_are_bco():
  s = record([4.0, -2.0, 1.0], [1, 0, 1], [1.0, 1.0, 1.0])
  udm, bco = objectives.bco_udm(0.5), objectives.bco(0.5)
  expected = scored.evaluate(bco, s, bco.init())
  out = scored.evaluate(udm, s, udm.init())
  np.testing.assert_array_equal(out.per_example_B, expected.per_example_B)
  assert out.state == expected.state


def test_a_record_without_weights_is_refused():
  o = objectives.bco_udm()
  s = record([1.0], [1], [1.0]).replace(prompt_weight_BK=None)
  with pytest.raises(ValueError, match="bco_udm requires the column prompt_weight_BK"):
    scored.evaluate(o, s, o.init())
