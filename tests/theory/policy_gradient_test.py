"""Expected gradients of the on-policy objectives, by enumerating all completions.

The batch holds every completion once, weighted by its probability: a mean over the
batch is then an expectation, and must be the gradient of E r - beta KL(policy || ref).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import returns, token_mdp
from xpo_jax.types import Mean

pytestmark = pytest.mark.usefixtures("float64")

V, T, BETA = 3, 3, 0.4
S, N = sum(V**t for t in range(T)), V**T


def transitions():
  return token_mdp.tree(V, T)


def completions():
  return token_mdp.sequences(V, T)


@pytest.fixture(scope="module")
def world():
  """Logits of a policy, a reference, a reward of each completion."""
  rng = np.random.default_rng(0)
  ref = np.log(rng.dirichlet([2.0] * V, size=S))
  return rng.normal(size=(S, V)), ref, 2 + rng.normal(size=N)


def along(x_SV):
  return token_mdp.along(x_SV, transitions(), completions())


def log_policy(logits):
  return along(jax.nn.log_softmax(logits))


def exact(world, beta):
  """Gradient of E r - beta KL(policy || ref) in the logits."""
  logits, ref, reward = world

  def value(logits):
    logp = log_policy(logits).sum(-1)
    return (jnp.exp(logp) * (reward - beta * (logp - along(ref).sum(-1)))).sum()

  return jax.jit(jax.grad(value))(logits)


def expected(objective, world, state=(), first=None, value=None):
  """Gradient of the expected loss; `first` is the completion in column 0, if any."""
  logits, ref, reward = world
  old = log_policy(logits)

  def columns(x):
    own = jnp.asarray(x)[:, None]
    if first is None:
      return own
    return jnp.concatenate([jnp.broadcast_to(own[first], own.shape), own], 1)

  def loss(logits):
    logp = columns(log_policy(logits))
    s = scored.from_token_logps(
      logp,
      jnp.ones_like(logp),
      columns(along(ref)),
      old_logp_BKT=columns(old),
      value_BKT=None if value is None else columns(value),
      old_value_BKT=None if value is None else columns(value),
      reward_BK=columns(reward),
      weight_B=jnp.exp(old.sum(-1)),
    )
    return scored.evaluate(objective, s, state).loss

  return jax.jit(jax.grad(loss))(logits)


def policy_value(logits, reward):
  """V of the policy in the state before each token of each completion, `[N, T]`."""
  p = np.exp(np.asarray(log_policy(logits)).sum(-1))
  paths = np.asarray(completions())
  value = np.zeros((N, T))
  for t in range(T):
    for n in range(N):
      same = (paths[:, :t] == paths[n, :t]).all(-1)
      value[n, t] = (p * reward)[same].sum() / p[same].sum()
  return value


@pytest.mark.parametrize("beta", [None, BETA])
@pytest.mark.parametrize("baseline", [0.0, 5.0])
def test_reinforce_is_unbiased_for_any_baseline(world, beta, baseline):
  state = Mean(jnp.float32(baseline), jnp.float32(1))
  gradient = expected(objectives.reinforce(beta), world, state)
  np.testing.assert_allclose(gradient, -exact(world, beta or 0.0), atol=1e-10)


@pytest.mark.parametrize("beta", [None, BETA])
def test_remax_is_unbiased_with_the_greedy_completion(world, beta):
  greedy = int(jnp.argmax(log_policy(world[0]).sum(-1)))
  gradient = expected(objectives.remax(beta), world, first=greedy)
  np.testing.assert_allclose(gradient, -exact(world, beta or 0.0), atol=1e-10)


def test_remax_moves_a_sample_by_what_it_gains_over_the_greedy_completion():
  logp = np.array([[-1.0, -2.0, -3.0]])

  def loss(logp):
    s = scored.from_sequence_logps(logp, [[1, 2, 3]], reward_BK=[[0.7, 0.7, 0.2]])
    return scored.evaluate(objectives.remax(None), s).loss

  slope = jax.jit(jax.grad(loss))(jnp.asarray(logp))
  np.testing.assert_allclose(slope, [[0.0, 0.0, 0.5 / 2]], atol=1e-12)


@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_ppo_at_ratio_1_is_the_policy_gradient_over_the_deviation(world, lam):
  """At lam = 1 any value function works; below, it must be the policy's own."""
  logits, ref, reward = world
  logp = log_policy(logits)
  penalty = BETA * (logp - along(ref))
  any_S = np.random.default_rng(1).normal(size=(S, 1))
  value = np.asarray(along(np.broadcast_to(any_S, (S, V))))
  if lam < 1:
    own = policy_value(logits, np.asarray(reward - penalty.sum(-1)))
    value = own + np.cumsum(penalty, -1) - penalty  # plus the penalty so far
  o = objectives.ppo(BETA, value_weight=0.0, gamma=1.0, lam=lam, whiten_reward=False)
  gradient = expected(o, world, value=value)
  mask = jnp.ones((N, 1, T))
  shaped = returns.kl_shaped(
    returns.place(reward[:, None], mask), penalty[:, None], 1.0
  )
  advantage, _ = returns.gae(shaped, jnp.asarray(value)[:, None], mask, 1.0, lam)
  deviation = np.asarray(advantage).std()
  # The advantages are whitened, and the loss is a mean over tokens.
  expected_gradient = -exact(world, BETA) / (deviation * T)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-8)


def test_expected_gradient_vanishes_at_the_soft_optimum(world):
  _, ref, _ = world
  dense = np.random.default_rng(2).normal(size=(S, V))
  best = token_mdp.soft_bellman(dense, ref, transitions(), BETA, T)
  state = objectives.reinforce().init()
  reward = along(dense).sum(-1)
  at_best = expected(objectives.reinforce(BETA), (best.logp_SV, ref, reward), state)
  np.testing.assert_allclose(at_best, 0, atol=1e-10)
  at_ref = expected(objectives.reinforce(BETA), (ref, ref, reward), state)
  assert np.abs(at_ref).max() > 0.01
