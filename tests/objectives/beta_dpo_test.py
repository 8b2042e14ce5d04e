"""beta-DPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy
from xpo_jax.types import Aux


def pairs(gap):
  """Pairs with these log-ratio gaps."""
  logp = np.stack([gap, np.zeros_like(gap)], 1)
  return scored.from_sequence_logps(logp, np.ones_like(logp), 0 * logp)


def test_hand_computed_state_beta_and_loss():
  gap = np.array([1.0, 3.0, 5.0, 11.0])
  state = {"gap_mean": jnp.float32(2.0), "gap_std": jnp.float32(1.0)}
  selected = np.array([1.0, 0.0, 1.0, 0.0])
  hparams = {"beta": 0.1, "alpha": 0.2, "momentum": 0.9}
  aux, state = objectives.beta_dpo_coupling(
    pairs(gap), state, lambda _: selected, **hparams
  )
  mean = 0.9 * 2 + 0.1 * gap.mean()
  assert state["gap_mean"] == pytest.approx(mean)
  assert state["gap_std"] == pytest.approx(0.9 * 1 + 0.1 * gap.std(ddof=1))
  beta = 0.1 * (1 + 0.2 * (3.0 - mean))  # the selected gaps' mean is 3
  assert aux.shared == pytest.approx(beta)
  out = objectives.beta_dpo(**hparams).loss(pairs(gap), Aux(selected, aux.shared))
  expected = np.log1p(np.exp(-beta * gap[[0, 2]])).mean()
  assert out.terms["beta_dpo"].value == pytest.approx(expected)


def test_fixed_beta_and_all_pairs_is_dpo():
  s = toy.scored(K=2)
  o = objectives.beta_dpo(beta=0.3, alpha=0.0, keep=1.0)
  expected = scored.evaluate(objectives.dpo(beta=0.3), s)
  actual = scored.evaluate(o, s, o.init(), jax.random.key(0))
  assert actual.loss == pytest.approx(float(expected.loss), rel=1e-6)
  np.testing.assert_allclose(actual.per_example_B, expected.per_example_B, rtol=1e-6)


def test_first_step_without_any_gap_is_log_2():
  o, s = objectives.beta_dpo(), toy.scored(K=2, policy_equals_ref=True)
  out = scored.evaluate(o, s, o.init(), jax.random.key(0))
  assert out.loss == pytest.approx(np.log(2))
  assert out.state["gap_std"] == 0


@jax.jit
def drawn(keep, weight_B):
  o = objectives.beta_dpo(keep=keep)
  s = toy.scored(K=2, B=10).replace(weight_B=weight_B)
  return o.prepare(s, o.init(), jax.random.key(0))[0].rows


@pytest.mark.parametrize(("rows", "keep"), [(8, 0.8), (10, 0.7), (5, 0.1), (4, 1.0)])
def test_draws_the_given_fraction_of_the_real_rows(rows, keep):
  weight_B = (np.arange(10) < rows).astype(np.float32)
  selected_B = np.asarray(drawn(keep, weight_B))
  assert selected_B.sum() == max(1, int(rows * keep + 1e-9))
  assert set(np.unique(selected_B)) <= {0.0, 1.0}
  assert not selected_B[rows:].any()


def test_typical_pairs_are_drawn_more_often():
  gap = np.array([0.0, 0.1, -0.1, 4.0])
  o = objectives.beta_dpo(keep=0.5, momentum=0.0)
  draw = jax.jit(jax.vmap(lambda key: o.prepare(pairs(gap), o.init(), key)[0].rows))
  share = np.asarray(draw(jax.random.split(jax.random.key(0), 400))).mean(0)
  assert share.sum() == pytest.approx(2)
  assert share[3] < share[:3].min() - 0.2


def test_beta_never_falls_below_the_floor():
  state = {"gap_mean": jnp.float32(100.0), "gap_std": jnp.float32(1.0)}
  o = objectives.beta_dpo(alpha=0.6, keep=1.0)
  out = scored.evaluate(o, pairs(np.array([0.0, 1.0])), state, jax.random.key(0))
  assert out.metrics["beta"] == pytest.approx(1e-3)


def test_missing_state_and_missing_key_are_refused():
  o, s = objectives.beta_dpo(), toy.scored(K=2)
  with pytest.raises(ValueError, match=r"beta_dpo keeps state.*objective\.init\(\)"):
    scored.evaluate(o, s, key=jax.random.key(0))
  with pytest.raises(
    ValueError, match=r"beta_dpo draws random numbers.*jax\.random\.key"
  ):
    scored.evaluate(o, s, state=o.init())
