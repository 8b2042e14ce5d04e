"""Token-level MDP of a language model, solved exactly in tabular form.

A state is a prompt and the tokens so far, an action the next token; transitions are
deterministic, and there is no discount. States are numbered `0 .. S-1`, 0 being the
prompt; `S` is the terminal state. An array `x_SV` holds a value per state and token.

Paper: Rafailov et al. 2024, "From r to Q*: Your Language Model is Secretly a
Q-Function", arXiv:2404.12358.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


class Backup(NamedTuple):
  """Optimal values and policy of a token MDP with a KL penalty to a reference.

  Attributes:
    q_SV: Q* = r + beta log ref + V*(s').
    value_S: V* = beta log sum exp(Q* / beta); 0 at the terminal state.
    logp_SV: log pi* = (Q* - V*) / beta, nats.
    advantage_SV: r + V*(s') - V*(s), which is beta log(pi* / ref): the shaped reward,
      not the reward.
  """

  q_SV: Array
  value_S: Array
  logp_SV: Array
  advantage_SV: Array


def tree(vocabulary: int, depth: int) -> Array:
  """Transitions of the tree of all completions of `depth` tokens: `next_SV`, int32.

  State 0 is the prompt, the children of s are V s + 1 + token: states are ordered by
  length, then by their tokens.
  """
  S = sum(vocabulary**t for t in range(depth))
  child_SV = 1 + jnp.arange(S * vocabulary).reshape(S, vocabulary)
  return jnp.minimum(child_SV, S)


def sequences(vocabulary: int, depth: int) -> Array:
  """All completions of `depth` tokens in lexicographic order, `[V^T, T]`."""
  axes = jnp.meshgrid(*[jnp.arange(vocabulary)] * depth, indexing="ij")
  return jnp.stack(axes, -1).reshape(-1, depth)


def soft_bellman(
  reward_SV: Array,
  ref_logp_SV: Array,
  next_SV: Array,
  beta: float | Array,
  depth: int,
) -> Backup:
  """Soft Bellman backup: V, Q, policy and advantage of the KL-regularised optimum.

  Args:
    reward_SV: r, reward of each token in each state.
    ref_logp_SV: log-probs of the reference, nats; -inf where a token is impossible.
    next_SV: the state each token leads to; S is terminal (see `tree`).
    beta: tie to ref, per nat; > 0.
    depth: tokens of the longest completion, and number of sweeps of the backup.

  Returns:
    Backup; differentiable.
  """
  chex.assert_equal_shape([reward_SV, ref_logp_SV, next_SV])

  def onward(value_S: Array) -> Array:
    return reward_SV + value_S.at[next_SV].get(mode="fill", fill_value=0)

  def sweep(value_S: Array, _: None) -> tuple[Array, None]:
    q_SV = onward(value_S) + beta * ref_logp_SV
    return beta * jax.nn.logsumexp(q_SV / beta, axis=-1), None

  # After sweep t, states followed by at most t tokens are exact.
  start_S = jnp.zeros_like(reward_SV[:, 0])
  value_S, _ = jax.lax.scan(sweep, start_S, length=depth)
  q_SV = onward(value_S) + beta * ref_logp_SV
  advantage_SV = onward(value_S) - value_S[:, None]
  return Backup(q_SV, value_S, ref_logp_SV + advantage_SV / beta, advantage_SV)


def along(x_SV: Array, next_SV: Array, token_BKT: Array) -> Array:
  """Entries of a table along completions, `[B, K, T]`; 0 past the end.

  Args:
    x_SV: a value per state and token.
    next_SV: see `soft_bellman`.
    token_BKT: completions, starting in state 0; any leading axes.
  """
  chex.assert_equal_shape([x_SV, next_SV])
  x_SV, next_SV, end = jnp.asarray(x_SV), jnp.asarray(next_SV), len(next_SV)

  def step(state_BK: Array, token_BK: Array) -> tuple[Array, Array]:
    here = (state_BK, token_BK)
    x_BK = x_SV.at[here].get(mode="fill", fill_value=0)
    return next_SV.at[here].get(mode="fill", fill_value=end), x_BK

  start_BK = jnp.zeros(token_BKT.shape[:-1], next_SV.dtype)
  _, x_TBK = jax.lax.scan(step, start_BK, jnp.moveaxis(token_BKT, -1, 0))
  return jnp.moveaxis(x_TBK, 0, -1)


def beam_search(
  logp_SV: Array, next_SV: Array, width: int, depth: int
) -> tuple[Array, Array]:
  """Beam search by the likelihood of a policy.

  For the optimum of `soft_bellman` the log-prob of a prefix is, up to a constant, the
  rewards so far plus the value of its last state, divided by beta: beam search is then
  guided by the policy's own value function, towards the largest sum of
  r + beta log ref (not of r alone).

  Args:
    logp_SV: log-probs of the policy, nats.
    next_SV: see `soft_bellman`.
    width: number of beams.
    depth: tokens of the longest completion.

  Returns:
    Tokens `[width, T]`, best first, 0 past the end, and their log-probs `[width]`;
    -inf where there are fewer completions than `width`.
  """
  chex.assert_equal_shape([logp_SV, next_SV])
  logp_SV, next_SV = jnp.asarray(logp_SV), jnp.asarray(next_SV)
  V, end = logp_SV.shape[1], len(next_SV)
  # A finished completion stays: in the terminal state, token 0 has log-prob 0.
  stay_V = jnp.where(jnp.arange(V) == 0, 0, -jnp.inf).astype(logp_SV.dtype)
  logp_SV = jnp.concatenate([logp_SV, stay_V[None]])
  next_SV = jnp.concatenate([next_SV, jnp.full_like(next_SV[:1], end)])

  def step(beams: tuple, t: Array) -> tuple[tuple, None]:
    state_W, score_W, token_WT = beams
    score_WV = score_W[:, None] + logp_SV[state_W]
    score_W, best_W = jax.lax.top_k(score_WV.ravel(), width)
    parent_W, token_W = best_W // V, best_W % V
    state_W = next_SV[state_W[parent_W], token_W]
    token_WT = token_WT[parent_W].at[:, t].set(token_W)
    return (state_W, score_W, token_WT), None

  first = jnp.arange(width) == 0
  beams = (
    jnp.zeros(width, next_SV.dtype),
    jnp.where(first, 0, -jnp.inf).astype(logp_SV.dtype),
    jnp.zeros((width, depth), jnp.int32),
  )
  (_, score_W, token_WT), _ = jax.lax.scan(step, beams, jnp.arange(depth))
  return token_WT, score_W
