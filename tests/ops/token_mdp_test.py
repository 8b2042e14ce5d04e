"""The soft Bellman backup and beam search against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import token_mdp

token_mdp = compiled.module(token_mdp)

V, T, BETA = 3, 3, 0.5
S = sum(V**t for t in range(T))
PATHS = list(itertools.product(range(V), repeat=T))


def transitions():
  return token_mdp.tree(V, T)


@pytest.fixture(scope="module")
def mdp():
  rng = np.random.default_rng(0)
  reward = jnp.asarray(rng.normal(size=(S, V)), jnp.float32)
  ref = jnp.log(jnp.asarray(rng.dirichlet([2.0] * V, size=S), jnp.float32))
  return reward, ref, token_mdp.soft_bellman(reward, ref, transitions(), BETA, T)


def walk(path):
  """States and tokens of a completion in a complete tree."""
  states, state = [], 0
  for token in path:
    states.append(state)
    state = V * state + 1 + token
  return states, list(path)


def test_tree_numbers_states_by_length_then_tokens():
  assert len(transitions()) == S == 1 + V + V**2
  np.testing.assert_array_equal(transitions()[0], [1, 2, 3])
  np.testing.assert_array_equal(transitions()[1], [4, 5, 6])
  assert (transitions()[1 + V :] == S).all()  # the last token ends it
  np.testing.assert_array_equal(token_mdp.sequences(V, T), PATHS)


def test_along_reads_the_entries_of_each_completion(mdp):
  reward, _, _ = mdp
  actual = token_mdp.along(reward, transitions(), token_mdp.sequences(V, T))
  expected = [np.asarray(reward)[walk(path)] for path in PATHS]
  np.testing.assert_array_equal(actual, expected)
  grouped = token_mdp.along(reward, transitions(), jnp.asarray(PATHS).reshape(3, -1, T))
  np.testing.assert_array_equal(grouped.reshape(-1, T), expected)
  beyond = token_mdp.along(reward, transitions(), jnp.zeros((1, T + 2), jnp.int32))
  assert not beyond[:, T:].any()


def test_value_and_policy_are_those_of_all_completions(mdp):
  reward, ref, best = mdp
  paths = token_mdp.sequences(V, T)
  r, logref, logp = (
    np.asarray(token_mdp.along(x, transitions(), paths), np.float64).sum(-1)
    for x in (reward, ref, best.logp_SV)
  )
  weight = np.exp(logref + r / BETA)  # the optimum over whole completions
  np.testing.assert_allclose(best.value_S[0], BETA * np.log(weight.sum()), rtol=1e-5)
  np.testing.assert_allclose(np.exp(logp), weight / weight.sum(), rtol=1e-4)


def test_q_v_and_policy_are_consistent(mdp):
  _, ref, best = mdp
  np.testing.assert_allclose(
    best.logp_SV, (best.q_SV - best.value_S[:, None]) / BETA, atol=1e-5
  )
  np.testing.assert_allclose(best.advantage_SV, BETA * (best.logp_SV - ref), atol=1e-5)
  np.testing.assert_allclose(jnp.exp(best.logp_SV).sum(-1), 1, rtol=1e-5)


def test_impossible_token_stays_impossible(mdp):
  reward, ref, _ = mdp
  ref = ref.at[0, 1].set(-jnp.inf)
  best = token_mdp.soft_bellman(reward, ref, transitions(), BETA, T)
  assert np.isneginf(best.logp_SV[0, 1])
  assert np.isfinite(best.value_S).all()


def test_short_completions_end_where_the_table_says():
  # Two tokens; 0 ends at once, 1 leads to a second state where both end.
  next_SV = jnp.array([[2, 1], [2, 2]])
  reward = jnp.array([[1.0, 0.0], [2.0, -1.0]])
  ref = jnp.log(jnp.full((2, 2), 0.5))
  best = token_mdp.soft_bellman(reward, ref, next_SV, 1.0, 2)
  inner = np.log(0.5 * np.exp(2.0) + 0.5 * np.exp(-1.0))
  outer = np.log(0.5 * np.exp(1.0) + 0.5 * np.exp(inner))
  np.testing.assert_allclose(best.value_S, [outer, inner], rtol=1e-6)
  tokens, logp = token_mdp.beam_search(best.logp_SV, next_SV, 3, 2)
  every = {(0, 0): best.logp_SV[0, 0]}
  every |= {(1, a): best.logp_SV[0, 1] + best.logp_SV[1, a] for a in (0, 1)}
  expected = sorted(every, key=lambda path: -every[path])
  assert [tuple(row) for row in np.asarray(tokens)] == expected
  np.testing.assert_allclose(logp, [every[path] for path in expected], rtol=1e-5)


def test_beam_of_width_1_is_greedy(mdp):
  _, _, best = mdp
  tokens, _ = token_mdp.beam_search(best.logp_SV, transitions(), 1, T)
  state = 0
  for token in np.asarray(tokens)[0]:
    assert token == np.argmax(best.logp_SV[state])
    state = V * state + 1 + token


def test_excess_beams_have_probability_0(mdp):
  _, _, best = mdp
  tokens, logp = token_mdp.beam_search(best.logp_SV, transitions(), V**T + 2, T)
  assert np.isneginf(logp[-2:]).all()
  assert len({tuple(row) for row in np.asarray(tokens[:-2])}) == V**T


def test_program_size_does_not_depend_on_depth(mdp):
  reward, ref, _ = mdp

  def program(depth):
    def backup(reward):
      return token_mdp.soft_bellman(reward, ref, transitions(), BETA, depth)

    return str(jax.make_jaxpr(backup)(reward))

  assert " scan[" in program(3)
  assert program(3).count("\n") == program(30).count("\n")
