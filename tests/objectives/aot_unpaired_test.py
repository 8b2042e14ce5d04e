"""AOT without pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy
from xpo_jax.types import Aux


def unpaired_by_sorting(logp_BK, ref_BK, beta):
  """The formula as it is written, its gradient through the sort."""
  u_BK = logp_BK - ref_BK
  chosen, rejected = jnp.sort(u_BK[:, 0]), jnp.sort(u_BK[:, 1])
  return -jax.nn.log_sigmoid(beta * (chosen - rejected)).mean()


def test_unpaired_rows_add_up_to_the_sorted_loss_and_its_gradient():
  rng = np.random.default_rng(0)
  logp, ref = rng.normal(size=(2, 6, 2)).astype(np.float32)
  expected = jax.jit(jax.value_and_grad(unpaired_by_sorting))(logp, ref, 0.8)
  o = objectives.aot_unpaired(beta=0.8)

  def in_rows(logp_BK):
    """Row by row, as microbatches of one."""
    s = scored.from_sequence_logps(logp, np.ones_like(logp), ref)
    aux, _ = o.prepare(s, (), None)
    s = s.replace(logp_BKT=logp_BK[..., None])
    losses = []
    for b in range(6):
      s_b, rows_b = jax.tree.map(lambda x, b=b: x[b : b + 1], (s, aux.rows))
      losses.append(o.loss(s_b, Aux(rows_b)).terms["aot_unpaired"].total)
    return sum(losses) / 6

  actual = jax.jit(jax.value_and_grad(in_rows))(jnp.asarray(logp))
  np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
  np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5, atol=1e-7)


def test_loss_does_not_depend_on_the_pairing():
  s = toy.scored(K=2)
  swapped = s
  for field in ("logp_BKT", "ref_logp_BKT", "mask_BKT"):
    x = vars(s)[field]
    swapped = swapped.replace(**{field: x.at[:, 1].set(jnp.roll(x[:, 1], 1, 0))})
  o = objectives.aot_unpaired(beta=0.5)
  expected = float(scored.evaluate(o, s).loss)
  assert scored.evaluate(o, swapped).loss == pytest.approx(expected, rel=1e-6)
  dpo = objectives.dpo(beta=0.5)
  apart = scored.evaluate(dpo, s).loss - scored.evaluate(dpo, swapped).loss
  assert abs(apart) > 1e-3


@pytest.mark.parametrize("hparams", [{"beta": 0.0}, {"label_smoothing": 0.5}])
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"aot_unpaired: .* must be"):
    objectives.aot_unpaired(**hparams)
