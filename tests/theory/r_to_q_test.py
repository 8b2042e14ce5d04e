"""From r to Q*: token credits of DPO, and beam search by likelihood.

On a token MDP small enough to enumerate: Rafailov et al. 2024, arXiv:2404.12358.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import token_mdp

V, T, BETA = 3, 4, 0.5
S, N = sum(V**t for t in range(T)), V**T


def transitions():
  return token_mdp.tree(V, T)


def completions():
  return token_mdp.sequences(V, T)


def draw(seed):
  """Dense rewards and a reference, float64."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(S, V)), np.log(rng.dirichlet([2.0] * V, size=S))


def along(x_SV):
  return token_mdp.along(x_SV, transitions(), completions())


@pytest.fixture(scope="module")
def mdp():
  reward, ref = draw(0)
  with jax.enable_x64(True):
    best = token_mdp.soft_bellman(reward, ref, transitions(), BETA, T)
    return reward, ref, jax.device_get(best)


def test_optimal_policy_is_the_softmax_of_q(mdp):
  """pi* = exp((Q* - V*) / beta), Q* = r + beta log ref + V*(s')."""
  reward, ref, best = mdp
  np.testing.assert_allclose(
    best.logp_SV, special.log_softmax(best.q_SV / BETA, -1), atol=1e-12
  )
  leaves = np.asarray(transitions()) >= len(best.value_S)  # nothing comes after
  np.testing.assert_allclose(
    best.q_SV[leaves], (reward + BETA * ref)[leaves], atol=1e-12
  )


def learn(reward, ref):
  """The minimiser of token DPO over all pairs, weighted by win probability."""
  left, right = np.divmod(np.arange(N * N), N)
  total = np.asarray(along(reward).sum(-1))
  wins = 1 / (1 + np.exp(total[right] - total[left]))
  objective = objectives.token_dpo(BETA)
  ref_paths = along(ref)

  def sides(x):
    return jnp.stack([x[left], x[right]], 1)

  @jax.jit
  def population_loss(logits):
    policy = jax.nn.log_softmax(logits.reshape(S, V))
    s = scored.from_token_logps(
      sides(along(policy)), jnp.ones((N * N, 2, T)), sides(ref_paths), weight_B=wins
    )
    return scored.evaluate(objective, s).loss

  result = optimize.minimize(
    jax.value_and_grad(population_loss),
    np.zeros(S * V),
    jac=True,
    method="L-BFGS-B",
    options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-16, "gtol": 1e-10},
  )
  return np.asarray(jax.nn.log_softmax(result.x.reshape(S, V)))


def test_token_dpo_recovers_the_advantage_and_not_the_reward(mdp):
  reward, ref, best = mdp
  with jax.enable_x64(True):
    credit = BETA * (learn(reward, ref) - ref)
  np.testing.assert_allclose(credit, best.advantage_SV, atol=1e-5)
  # The shaped reward r + V*(s') - V*(s): far from r, and not a multiple of r.
  assert np.abs(credit - reward).max() > 1
  assert np.corrcoef(credit.ravel(), reward.ravel())[0, 1] < 0.9


def test_credit_telescopes_to_the_reward_of_the_completion(mdp):
  reward, ref, best = mdp
  with jax.enable_x64(True):
    s = scored.from_token_logps(
      along(best.logp_SV)[:, None], jnp.ones((N, 1, T)), along(ref)[:, None]
    )
    credit = np.asarray(objectives.token_rewards(s, BETA))[:, 0]
    total = np.asarray(along(reward)).sum(-1)
  np.testing.assert_allclose(credit.sum(-1), total - best.value_S[0], atol=1e-12)
  # For a prefix: the reward so far plus the change of the value.
  states = np.asarray(along(np.broadcast_to(np.arange(S)[:, None], (S, V))))
  so_far = np.asarray(along(reward))[:, :2].sum(-1)
  expected = so_far + best.value_S[states[:, 2]] - best.value_S[0]
  np.testing.assert_allclose(credit[:, :2].sum(-1), expected, atol=1e-6)


def test_shift_of_all_logits_of_a_state_changes_nothing(mdp):
  _, _, best = mdp
  shifted = best.q_SV / BETA + np.random.default_rng(1).normal(size=(S, 1))
  with jax.enable_x64(True):
    np.testing.assert_allclose(jax.nn.log_softmax(shifted), best.logp_SV, atol=1e-12)


def test_beam_search_maximises_reward_plus_beta_log_ref():
  tables = np.stack([np.stack(draw(seed)) for seed in range(40)]).astype(np.float32)

  @jax.jit
  @jax.vmap
  def search(reward, ref):
    best = token_mdp.soft_bellman(reward, ref, transitions(), BETA, T)
    wide, _ = token_mdp.beam_search(best.logp_SV, transitions(), V ** (T - 1), T)
    narrow, _ = token_mdp.beam_search(best.logp_SV, transitions(), 1, T)
    searched = along(reward + BETA * ref).sum(-1)
    place = V ** jnp.arange(T)[::-1]
    values = [searched[(row[0] * place).sum()] for row in (wide, narrow)]
    rewarded = along(reward).sum(-1)[(wide[0] * place).sum()]
    return searched.max(), *values, along(reward).sum(-1).max(), rewarded

  best, wide, narrow, best_reward, rewarded = search(tables[:, 0], tables[:, 1])
  np.testing.assert_allclose(wide, best, rtol=1e-5)
  assert (narrow < best - 1e-3).any()  # one beam is not enough everywhere
  assert (rewarded < best_reward - 1e-3).any()  # r alone is not maximised
