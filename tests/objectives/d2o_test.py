"""D2O."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import token_stats


def record(logp, minus, plus, desirable, present=None):
  logp, minus, plus = (np.asarray(x, float)[..., None] for x in (logp, minus, plus))
  refs = {"ref_minus_logp_BKT": minus, "ref_plus_logp_BKT": plus}
  mask = np.ones_like(logp) if present is None else np.asarray(present)[..., None]
  return scored.from_token_logps(
    logp, mask, desirable_BK=desirable, present_BK=present, extra=refs
  )


def test_hand_computed_prompts_in_any_order():
  # Log-ratios: samples 2 and 4 against ref-, the undesirable completion 3 against ref+.
  up, down = [[-1.0, -1.0]], [[-1.0]]
  logp = np.concatenate([up, down], 1)
  s = record(logp, [[-3.0, -5.0, 50.0]], [[60.0, 70.0, -4.0]], [[1, 1, 0]])
  o = objectives.d2o(beta=0.5, alpha=0.2)
  out = scored.evaluate(o, s)
  margin = 0.5 * (2 + 4) / 2 - 0.2 * 3
  assert out.loss == pytest.approx(np.log1p(np.exp(-margin)))
  assert out.metrics["reward_margin"] == pytest.approx(margin)
  turned = jax.tree.map(lambda x: jnp.flip(x, 1) if x.ndim > 1 else x, s)
  assert scored.evaluate(o, turned).loss == pytest.approx(out.loss)


def test_absent_column_is_ignored():
  wide = record(
    [[-1.0, 9.0, -1.0]], [[-3.0, 0, 0]], [[0, 0, -4.0]], [[1, 1, 0]], [[1.0, 0, 1]]
  )
  narrow = record([[-1.0, -1.0]], [[-3.0, 0]], [[0, -4.0]], [[1, 0]])
  o = objectives.d2o()
  assert scored.evaluate(o, wide).loss == pytest.approx(scored.evaluate(o, narrow).loss)


@pytest.mark.parametrize("desirable", [[[1.0, 1.0]], [[0.0, 0.0]]])
def test_prompt_with_one_side_only_gives_0(desirable):
  s = record([[-1.0, -2.0]], [[-3.0, 0]], [[0, -4.0]], desirable)

  def loss(logp_BKT):
    return scored.evaluate(objectives.d2o(), s.replace(logp_BKT=logp_BKT)).loss

  value, slope = jax.jit(jax.value_and_grad(loss))(s.logp_BKT)
  chex.assert_trees_all_equal((value, slope), (jnp.zeros(()), jnp.zeros_like(slope)))


def test_each_reference_is_read_by_its_own_statistic():
  logits, target = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([1])
  by_field = {stat.field: stat for stat in objectives.d2o().stats}
  for role in ("ref_minus", "ref_plus"):
    stat = by_field[f"{role}_logp_BKT"]
    assert stat.roles == (role,)
    actual = stat.fn({role: logits}, target)
    np.testing.assert_array_equal(actual, token_stats.logp(logits, target))


@pytest.mark.parametrize("hparams", [{"alpha": 0.0}, {"beta": -0.1}])
def test_hparam_out_of_range_is_refused(hparams):
  (hparam,) = hparams
  with pytest.raises(ValueError, match=f"d2o: {hparam}="):
    objectives.build("d2o", hparams)
