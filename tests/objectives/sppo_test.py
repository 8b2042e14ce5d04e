"""SPPO; see also theory/games_test.py."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_loss_is_zero_where_log_ratios_are_eta_times_the_win_rate_over_one_half():
  s = scored.from_sequence_logps(
    [[-1.0, -5.5]], [[4, 4]], [[-4.0, -4.0]], reward_BK=[[0.8, 0.35]]
  )
  assert scored.evaluate(objectives.sppo(beta=0.1), s).loss == pytest.approx(
    0, abs=1e-9
  )
  # Adding the same to both log-ratios is not free: win rates are absolute.
  s = s.replace(logp_BKT=s.logp_BKT + 2)
  assert scored.evaluate(objectives.sppo(beta=0.1), s).loss == pytest.approx(2**2)


def test_oracle():
  s = toy.scored(K=2)
  gap = np.asarray(s.logp_BKT, np.float64) - np.asarray(s.ref_logp_BKT, np.float64)
  ratio = np.where(np.asarray(s.mask_BKT) > 0, gap, 0).sum(-1)
  eta, win = 1 / 0.05, np.asarray(s.reward_BK, np.float64)
  won = (ratio[:, 0] - eta * (win[:, 0] - 0.5)) ** 2
  lost = (ratio[:, 1] - eta * (win[:, 1] - 0.5)) ** 2
  out = scored.evaluate(objectives.sppo(beta=0.05), s)
  np.testing.assert_allclose(out.per_example_B, (won + lost) / 2, rtol=1e-5)
