"""TDPO1, compared with TDPO2."""

import jax
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives


def record(ratio, kl):
  """One pair with these log-ratios and KLs, each over two tokens."""
  half = np.repeat(np.asarray([ratio])[..., None] / 2, 2, -1)
  kl_BKT = np.repeat(np.asarray([kl])[..., None] / 2, 2, -1)
  return scored.from_token_logps(half, np.ones_like(half), 0 * half, ref_kl_BKT=kl_BKT)


def test_hand_computed_pair():
  s = record([3.0, 1.0], [0.4, 1.4])
  out = scored.evaluate(objectives.tdpo1(beta=0.5), s)
  assert out.loss == pytest.approx(-special.log_expit(0.5 * ((3 - 1) - (1.4 - 0.4))))
  assert out.metrics["reward_margin"] == pytest.approx(0.5 * ((3 + 0.4) - (1 + 1.4)))
  assert out.metrics["seq_kl_chosen"] == pytest.approx(0.4)
  assert out.metrics["seq_kl_rejected"] == pytest.approx(1.4)
  out = scored.evaluate(objectives.tdpo2(beta=0.5, alpha=0.3), s)
  assert out.loss == pytest.approx(
    -special.log_expit(0.5 * ((3 - 1) - 0.3 * (1.4 - 0.4)))
  )


def test_only_the_first_version_raises_the_chosen_kl():
  s = record([3.0, 1.0], [0.4, 1.4])

  def slope(o):
    def loss(kl_BKT):
      return scored.evaluate(o, s.replace(ref_kl_BKT=kl_BKT)).loss

    return jax.jit(jax.grad(loss))(s.ref_kl_BKT)[0, :, 0]

  chosen, rejected = slope(objectives.tdpo1(beta=0.5))
  weight = 0.5 / (1 + np.exp(0.5 * 1.0))  # beta sigma(-z)
  assert chosen == pytest.approx(-weight)
  assert rejected == pytest.approx(weight)
  chosen, rejected = slope(objectives.tdpo2(beta=0.5, alpha=1.0))
  assert chosen == 0
  assert rejected == pytest.approx(weight)


@pytest.mark.parametrize("hparams", [{"alpha": -0.1}, {"beta": 0.0}])
def test_hparam_out_of_range_is_refused(hparams):
  (hparam,) = hparams
  with pytest.raises(ValueError, match=f"tdpo2: {hparam}="):
    objectives.build("tdpo2", hparams)
