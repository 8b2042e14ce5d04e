"""Theorems and direct consequences of the formulas of DPO's variants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy
from xpo_jax.types import Aux, Scored

LOG2 = np.log(2)


def pair(chosen, rejected):
  """Pairs with these log-ratios."""
  u_BK = jnp.stack([jnp.asarray(chosen), jnp.asarray(rejected)], 1)
  return scored.from_sequence_logps(u_BK, jnp.ones_like(u_BK), 0 * u_BK)


AT_THE_REFERENCE = {
  "apo_zero": 1.0,
  "apo_down": 1.0,
  "apo_zero_unpaired": 0.5,
  "nca": 2 * LOG2,
  "infonca": (LOG2 + 7 * np.log(3)) / 8,  # a list of 2 completions, seven of 3
  "bco": LOG2,
  "aot": LOG2,
  "aot_unpaired": LOG2,
  "discopop": (LOG2 + 1) / 2,
  "ld_dpo": LOG2,
  "sampo": LOG2,
}


@pytest.mark.parametrize("name", AT_THE_REFERENCE)
def test_loss_where_policy_and_reference_agree(name):
  o = objectives.build(name)
  s = toy.scored(o.layout.completions or 3, policy_equals_ref=True)
  loss = scored.evaluate(o, s, o.init(), jax.random.key(0)).loss
  assert loss == pytest.approx(AT_THE_REFERENCE[name], rel=1e-6)


@pytest.mark.parametrize(
  "factory",
  [objectives.apo_zero, objectives.apo_down, objectives.nca, objectives.bco_pair],
)
def test_absolute_losses_depend_on_a_constant_added_to_both_log_ratios(factory):
  o, s = factory(beta=0.5), pair([1.0, -2.0, 0.3], [0.5, 1.0, -0.7])

  def loss(constant):
    moved = s.replace(logp_BKT=s.logp_BKT + constant)
    return o.loss(moved, Aux(shared=jnp.float32(0))).per_example_B

  assert (np.abs(loss(3.0) - loss(0.0)) > 1e-2).all()


@pytest.mark.parametrize("name", ["discopop", "aot", "aot_unpaired", "infonca"])
def test_relative_losses_do_not_depend_on_an_added_constant(name):
  o, s = objectives.get(name)(beta=0.5), pair([1.0, -2.0, 0.3], [0.5, 1.0, -0.7])
  s = s.replace(reward_BK=jnp.array([[1.0, 0.0]] * 3))

  def loss(constant):
    return scored.evaluate(o, s.replace(logp_BKT=s.logp_BKT + constant)).loss

  assert loss(3.0) == pytest.approx(float(loss(0.0)), rel=1e-5)


def test_nca_has_a_finite_target_for_the_chosen_completion():
  """sigma(beta u_w) = 2/3, so u_w = log(2) / beta; DPO has none."""
  beta = 0.25

  def slope(name, u_w):
    o = objectives.get(name)(beta=beta)
    return jax.grad(lambda u: scored.evaluate(o, pair([u], [-1.0])).loss)(u_w)

  target = np.log(2) / beta
  assert slope("nca", target) == pytest.approx(0, abs=1e-6)
  assert slope("nca", target - 0.1) < 0 < slope("nca", target + 0.1)
  assert slope("dpo", target + 0.1) < 0


REWARD = np.array([1.0, -0.5, 0.3, 0.0], np.float32)


def all_completions(logits_K) -> Scored:
  """One prompt, every completion in the list, a uniform reference."""
  logp_BK = jax.nn.log_softmax(logits_K)[None]
  ref_BK = jnp.full_like(logp_BK, -np.log(logits_K.size))
  return scored.from_sequence_logps(
    logp_BK, jnp.ones_like(logp_BK), ref_BK, reward_BK=REWARD[None]
  )


@functools.cache
def minimiser(name):
  factory = objectives.nca_list if name == "nca_list" else objectives.infonca
  o = factory(beta=1.0, alpha=0.7)
  slope = jax.grad(lambda logits: scored.evaluate(o, all_completions(logits)).loss)

  def step(logits, _):
    return logits - 0.5 * slope(logits), None

  return jax.lax.scan(step, jnp.zeros(4), length=300)[0]


@pytest.mark.parametrize("name", ["infonca", "nca_list"])
def test_list_losses_converge_to_the_tilted_reference(name):
  """At beta = 1: ref(y) exp(r / alpha), normalised."""
  tilted = np.exp(REWARD / 0.7)
  policy = jax.nn.softmax(minimiser(name))
  np.testing.assert_allclose(policy, tilted / tilted.sum(), rtol=1e-3)


def test_bco_minimiser_is_the_log_odds_of_the_classes():
  """beta u - shift = log(good / bad), as in any logistic regression."""
  good, bad = np.array([5.0, 1.0, 2.0]), np.array([1.0, 3.0, 2.0])
  shift, beta = 0.4, 0.5
  u = (np.log(good / bad) + shift) / beta
  weight = np.concatenate([good, bad])
  label = np.repeat([1.0, 0.0], 3)[:, None]

  def loss(u):
    both = jnp.concatenate([u, u])[:, None]
    s = scored.from_sequence_logps(
      both, jnp.ones_like(both), 0 * both, desirable_BK=label, weight_B=weight
    )
    out = objectives.bco(beta=beta).loss(s, Aux(shared=jnp.float32(shift)))
    return out.terms["bco"].value

  u = jnp.asarray(u, jnp.float32)
  slope = jax.jit(jax.grad(loss))
  np.testing.assert_allclose(slope(u), 0, atol=1e-7)
  assert (slope(u + 0.1) > 0).all()


def test_aot_detects_dominance_hidden_by_the_pairing():
  """Chosen log-ratios above rejected ones at every rank give less than log 2."""
  chosen, rejected = np.array([5.0, 1.0, 3.0]), np.array([4.0, 0.0, 2.0])
  mispaired = pair(chosen, np.roll(rejected, 1))
  o = objectives.aot_unpaired(beta=1.0)
  out = scored.evaluate(o, mispaired)
  assert out.loss == pytest.approx(np.log1p(np.exp(-1.0)), rel=1e-6)
  assert out.metrics["reward_accuracy"] < 1
  # Lowered by more than the gap: dominance at no rank.
  lowered = scored.evaluate(o, pair(chosen - 2, np.roll(rejected, 1)))
  assert lowered.loss == pytest.approx(np.log1p(np.exp(1.0)), rel=1e-6)


def test_rpo_and_mpo_are_mixtures():
  s = toy.scored(K=2)
  dpo, nll = objectives.dpo(beta=0.01), objectives.nll("sequence_mean")
  rpo = scored.evaluate(objectives.mixture((1.0, 0.005), (dpo, nll)), s)
  each = [float(scored.evaluate(part, s).loss) for part in (dpo, nll)]
  assert rpo.loss == pytest.approx(each[0] + 0.005 * each[1], rel=1e-6)

  parts = (objectives.dpo(), objectives.bco_pair(), objectives.sft())
  mpo = objectives.mixture((0.8, 0.2, 1.0), parts)
  state = mpo.init()
  out = scored.evaluate(mpo, s, state, jax.random.key(0))
  each = [
    float(scored.evaluate(part, s, own).loss)
    for part, own in zip(parts, state, strict=True)
  ]
  expected = 0.8 * each[0] + 0.2 * each[1] + each[2]
  assert out.loss == pytest.approx(expected, rel=1e-6)
  assert out.state[1]["count"] == 16
