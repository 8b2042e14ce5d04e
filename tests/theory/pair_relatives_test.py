"""What SPIN, Step-DPO, DPO-Shift, SimPER, BCO's UDM and the hinges prove."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import token_mdp
from xpo_jax.testing import toy
from xpo_jax.types import Aux

pytestmark = pytest.mark.usefixtures("float64")

DATA = np.array([0.5, 0.3, 0.15, 0.05])
OLD = np.array([0.1, 0.2, 0.3, 0.4])
LINKS = ("logistic", "hinge", "exponential", "truncated_quadratic")


def _self_play(o, logits, old):
  """The expected loss over all pairs: a demonstration, and a sample of the policy
  before."""
  n = len(DATA)
  chosen, rejected = (x.reshape(-1) for x in np.meshgrid(range(n), range(n)))
  both = np.stack([chosen, rejected], 1)
  logp, ref = jax.nn.log_softmax(logits), jnp.log(old)
  s = scored.from_sequence_logps(
    logp[both],
    np.ones(both.shape),
    ref[both],
    weight_B=DATA[chosen] * np.asarray(old)[rejected],
  )
  return scored.evaluate(o, s).loss


@pytest.mark.parametrize("link", LINKS)
def test_spin_stops_where_the_policy_is_the_distribution_of_the_data(link):
  """Theorem 5.2: a global minimum for any beta and convex, decreasing link; and from
  another distribution the same point is no stationary one."""
  o = objectives.spin(0.8, link)
  slope = jax.grad(lambda logits, old: _self_play(o, logits, old))
  np.testing.assert_allclose(slope(jnp.log(DATA), DATA), 0, atol=1e-12)
  least = _self_play(o, jnp.log(DATA), DATA)
  rng = np.random.default_rng(0)
  for _ in range(20):
    other = jnp.asarray(np.log(DATA) + rng.normal(size=4))
    assert _self_play(o, other, DATA) > least - 1e-12
  assert np.abs(slope(jnp.log(OLD), OLD)).max() > 1e-2


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_spin_s_next_policy_is_the_tilted_one(beta):
  """Theorem 5.4, logistic: p_next ~ p_old (p_data / p_old)^(1 / beta)."""
  o = objectives.spin(beta)
  best = jnp.log(OLD) + jnp.log(DATA / OLD) / beta
  slope = jax.grad(lambda logits: _self_play(o, logits, OLD))
  np.testing.assert_allclose(slope(best), 0, atol=1e-12)
  assert np.abs(slope(best * 1.1)).max() > 1e-3


def test_spin_and_step_dpo_are_dpo_on_their_data():
  s = toy.scored(K=2, dtype=np.float64)
  expected = scored.evaluate(objectives.dpo(beta=0.3), s).per_example_B
  for o in (objectives.spin(0.3), objectives.step_dpo(0.3)):
    np.testing.assert_allclose(scored.evaluate(o, s).per_example_B, expected)


def test_steps_before_the_pair_change_nothing():
  """Step-DPO on whole solutions that share their first steps, or on the step alone,
  with the shared steps in the prompt: the same loss and gradient of the policy."""
  vocab, length, shared = 3, 4, 2
  next_state = token_mdp.tree(vocab, length)
  paths = np.asarray(token_mdp.sequences(vocab, length))
  same = (paths[:, :shared] == [1, 2]).all(-1)
  pair = paths[same][[0, 5]]
  rng = np.random.default_rng(0)
  shape = (len(next_state), vocab)
  logits, ref = rng.normal(size=shape), rng.normal(size=shape)
  o = objectives.step_dpo(0.4)

  def loss(logits, first):
    def tokens(x):
      logp = token_mdp.along(jax.nn.log_softmax(x), next_state, pair)
      return logp[None, :, first:]

    policy = tokens(logits)
    s = scored.from_token_logps(policy, jnp.ones_like(policy), tokens(ref))
    return scored.evaluate(o, s).loss

  whole, step = (jax.value_and_grad(loss)(logits, first) for first in (0, shared))
  np.testing.assert_allclose(whole[0], step[0], rtol=1e-12)
  np.testing.assert_allclose(whole[1], step[1], atol=1e-14)
  assert np.abs(step[1]).max() > 1e-3


def test_dpo_shift_at_1_is_dpo():
  s = toy.scored(K=2, dtype=np.float64)
  shift, dpo = objectives.dpo_shift(0.3, 1.0), objectives.dpo(0.3)
  np.testing.assert_allclose(
    scored.evaluate(shift, s).per_example_B, scored.evaluate(dpo, s).per_example_B
  )


@pytest.mark.parametrize("similar", [True, False])
def test_dpo_shift_trades_margin_for_the_chosen_likelihood(similar):
  """Theorem 2.1 at the reference, to first order in the step: against DPO the chosen
  log-likelihood gains (1 - f) u_1, its sign that of the gradients' inner product, and
  the margin changes by (1 - f) u_2."""
  rng = np.random.default_rng(0)
  logits, beta, f = rng.normal(size=(3, 4)), 0.3, 0.7
  # Two tokens; similar completions share one of their states.
  states = np.array([[0, 1], [0, 1]]) if similar else np.array([[0, 1], [0, 2]])
  tokens = np.array([[1, 2], [1, 3]]) if similar else np.array([[1, 2], [3, 2]])

  def logps(logits):
    return jax.nn.log_softmax(logits)[states, tokens][None]

  def step(o):
    def loss(x):
      s = scored.from_token_logps(logps(x), np.ones((1, 2, 2)), logps(logits))
      return scored.evaluate(o, s).loss

    return -np.asarray(jax.jit(jax.grad(loss))(logits))

  moved = step(objectives.dpo_shift(beta, f)) - step(objectives.dpo(beta))
  chosen, rejected = (
    np.asarray(jax.grad(lambda x, k=k: logps(x)[0, k].sum())(logits)) for k in (0, 1)
  )
  np.testing.assert_allclose(moved, (1 - f) * beta / 2 * rejected, atol=1e-12)
  u1 = (chosen * rejected).sum() * beta / 2
  u2 = u1 - (rejected**2).sum() * beta / 2
  assert (moved * chosen).sum() == pytest.approx((1 - f) * u1)
  assert (moved * (chosen - rejected)).sum() == pytest.approx((1 - f) * u2)
  assert (u1 > 0) == similar and u2 < 0


def test_simper_s_gradient_is_weighted_by_the_inverse_perplexity():
  """d L / d log pi(y_t) = -+ exp(a) / |y|: at most 1 / |y|, and near 0 for an unlikely
  completion, where SimPO's stays."""
  length = np.array([[4.0, 5.0]])

  def slopes(o, average):
    logp = jnp.asarray(average) * length

    def loss(logp):
      return scored.evaluate(o, scored.from_sequence_logps(logp, length)).loss

    return np.asarray(jax.jit(jax.grad(loss))(logp))[0]

  for average in ([-0.2, -3.0], [-2.0, -0.1], [0.0, 0.0]):
    weight = np.exp(average) / length[0]
    np.testing.assert_allclose(
      slopes(objectives.simper(), [average]), [-weight[0], weight[1]]
    )
  unlikely = [[-1.0, -30.0]]
  assert abs(slopes(objectives.simper(), unlikely)[1]) < 1e-12
  wrong = [[-30.0, -1.0]]  # SimPO pulls an unlikely chosen completion with full force
  assert abs(slopes(objectives.simpo(), wrong)[0]) > 0.4
  assert abs(slopes(objectives.simper(), wrong)[0]) < 1e-12


def test_simper_is_linear_in_the_policy_on_single_tokens():
  """E L = -sum_y pi(y) (p_w(y) - p_l(y)): the optimum is all mass on one token, the
  mode-seeking side of the total variation that the paper derives."""
  won, lost = DATA, OLD
  rng = np.random.default_rng(0)
  for _ in range(5):
    pi = rng.dirichlet(np.ones(4))
    chosen, rejected = (x.reshape(-1) for x in np.meshgrid(range(4), range(4)))
    both = np.stack([chosen, rejected], 1)
    s = scored.from_sequence_logps(
      np.log(pi)[both], np.ones(both.shape), weight_B=won[chosen] * lost[rejected]
    )
    loss = float(scored.evaluate(objectives.simper(), s).loss)
    assert loss == pytest.approx(-(pi * (won - lost)).sum())
    assert loss >= -(won - lost).max()


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_hinge_of_cpo_is_slic_at_the_margin_1_over_beta(beta):
  s = toy.scored(K=2, dtype=np.float64)
  hinge = objectives.cpo(beta, weight=0.0, link="hinge")
  slic = objectives.slic(delta=1 / beta, weight=0.0)
  np.testing.assert_allclose(
    scored.evaluate(hinge, s).terms["cpo"],
    beta * scored.evaluate(slic, s).terms["slic"],
    rtol=1e-6,
  )


def test_hinge_of_simpo_stops_at_the_margin():
  """Zero gradient beyond z = 1, beta / |y| before it; the logistic loss never stops."""

  def slope(average, link):
    def loss(a):
      s = scored.from_sequence_logps(jnp.stack([a, -1.0])[None], [[1, 1]])
      return scored.evaluate(objectives.simpo(2.0, 0.5, link=link), s).loss

    return float(jax.jit(jax.grad(loss))(jnp.asarray(average)))

  assert slope(-0.2, "hinge") == 0  # z = 2 * 0.8 - 0.5 = 1.1
  assert slope(-0.3, "hinge") == pytest.approx(-2.0)  # z = 0.9
  assert slope(-0.2, "logistic") < -0.1


def test_udm_makes_bco_s_optimum_independent_of_the_classes_prompts():
  """Two prompts, three completions of each: with w = p_+(x) / p_-(x) the optimum is the
  log-odds of the completion given its prompt; without, it has the prompt's too."""
  good = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])  # p(y | x, desirable)
  bad = np.array([[0.2, 0.3, 0.5], [0.3, 0.3, 0.4]])
  prompts = np.array([[0.8], [0.2]]), np.array([[0.3], [0.7]])  # p_+(x), p_-(x)
  classes = zip(prompts, (good, bad), strict=True)
  mass = np.concatenate([(p * q).ravel() for p, q in classes])
  label = np.repeat([1.0, 0.0], 6)[:, None]
  ratio = np.repeat((prompts[0] / prompts[1]).ravel(), 3)
  weight = np.concatenate([np.ones(6), ratio])[:, None]
  shift, beta = 0.4, 0.5

  def slope(o, u):
    def loss(u):
      both = jnp.concatenate([u, u])[:, None]
      s = scored.from_sequence_logps(
        both,
        jnp.ones_like(both),
        0 * both,
        desirable_BK=label,
        prompt_weight_BK=weight,
        weight_B=mass,
      )
      return sum(t.value for t in o.loss(s, Aux(shared=shift)).terms.values())

    return np.asarray(jax.jit(jax.grad(loss))(u))

  best = jnp.asarray((np.log(good / bad).ravel() + shift) / beta)
  np.testing.assert_allclose(slope(objectives.bco_udm(beta), best), 0, atol=1e-12)
  assert (slope(objectives.bco_udm(beta), best + 0.5) > 1e-4).all()
  assert np.abs(slope(objectives.bco(beta), best)).max() > 1e-2
