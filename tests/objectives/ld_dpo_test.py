"""LD-DPO."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair():
  # Chosen: three tokens, rejected: one. The last two of the chosen count half.
  policy = [[[-1.0, -2.0, -3.0], [-1.5, 9.0, 9.0]]]
  ref = [[[-1.5, -1.0, -5.0], [-0.5, 9.0, 9.0]]]
  s = scored.from_token_logps(policy, [[[1, 1, 1], [1, 0, 0]]], ref)
  margin = 0.4 * ((0.5 + 0.5 * (-1 + 2)) - (-1))
  out = scored.evaluate(objectives.ld_dpo(beta=0.4, alpha=0.5), s)
  assert out.loss == pytest.approx(np.log1p(np.exp(-margin)), rel=1e-6)
  assert out.metrics["logp_chosen"] == pytest.approx(-6)  # whole


def test_alpha_1_is_dpo():
  s = toy.scored(K=2)
  expected = scored.evaluate(objectives.dpo(beta=0.3), s)
  out = scored.evaluate(objectives.ld_dpo(beta=0.3, alpha=1.0), s)
  np.testing.assert_allclose(out.per_example_B, expected.per_example_B, rtol=1e-6)
  assert out.metrics.keys() == expected.metrics.keys()


def test_alpha_0_ignores_excess_tokens():
  s = toy.scored(K=2)
  o = objectives.ld_dpo(beta=0.3, alpha=0.0)
  shortest = np.asarray(s.length_BK).min(-1)[:, None, None]
  tail = (np.arange(5) >= shortest) & (np.asarray(s.mask_BKT) > 0)
  assert tail.any()
  louder = s.replace(logp_BKT=s.logp_BKT - 3 * tail)
  expected = float(scored.evaluate(o, s).loss)
  assert scored.evaluate(o, louder).loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("hparams", [{"beta": 0.0}, {"alpha": -0.1}, {"alpha": 1.1}])
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"ld_dpo: .* must be"):
    objectives.ld_dpo(**hparams)
