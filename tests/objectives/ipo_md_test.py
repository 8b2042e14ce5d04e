"""Online IPO and IPO-MD; see also theory/games_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.feedback import protocol
from xpo_jax.testing import toy


def check():
  s = toy.scored(K=2)
  gap = np.asarray(s.logp_BKT, np.float64) - np.asarray(s.ref_logp_BKT, np.float64)
  h = np.where(np.asarray(s.mask_BKT) > 0, gap, 0).sum(-1) @ [1, -1]
  tau, p = 0.3, 0.5 + np.asarray(s.reward_BK, np.float64) @ [0.5, -0.5]
  # The paper's: l(y, y') weighs -h + tau h^2, whose square is complete but for 1/4tau.
  expected = tau * h**2 - (2 * p - 1) * h + 1 / (4 * tau)
  out = scored.evaluate(objectives.ipo_md(beta=tau), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)


def test_oracle():
  check()


def test_certain_label_is_ipo_and_swapping_the_two_changes_nothing():
  s = toy.scored(K=2)
  sure = s.replace(reward_BK=np.tile([[1.0, 0.0]], (8, 1)))
  ipo = scored.evaluate(objectives.ipo(beta=0.2), sure).per_example_B
  rows = scored.evaluate(objectives.ipo_md(beta=0.2), sure).per_example_B
  np.testing.assert_allclose(rows, 0.2 * ipo, rtol=1e-6)
  swapped = s.replace(
    **{f: vars(s)[f][:, ::-1] for f in ("logp_BKT", "ref_logp_BKT", "mask_BKT")},
    reward_BK=s.reward_BK[:, ::-1],
  )
  a, b = (scored.evaluate(objectives.ipo_md(), x).loss for x in (s, swapped))
  assert a == pytest.approx(float(b), rel=1e-6)


def test_preferences_between_two_samples_give_the_judges_p():
  """dL/dh at h = 0 is 1 - 2 p, with p as the judge said it."""

  def sure(prompts, first, second):
    return protocol.Scores(np.full(len(prompts), 0.9))

  rate_BK = protocol.win_rates(sure, ["x"], [["a", "b"]], include_self=False)

  def loss(h):
    logp = jnp.stack([h - 1, -1.0])[None]
    s = scored.from_sequence_logps(logp, [[4, 4]], [[-1.0, -1.0]], reward_BK=rate_BK)
    return scored.evaluate(objectives.ipo_md(), s).loss

  assert float(jax.jit(jax.grad(loss))(0.0)) == pytest.approx(1 - 2 * 0.9, rel=1e-5)
