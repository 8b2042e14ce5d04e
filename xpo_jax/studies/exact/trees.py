"""Pairs of completions of a small token MDP: every state has logits of its own.

As `bandits`, each function is a cell; values, optimum and KLs are exact.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xpo_jax import objectives, scored
from xpo_jax.ops import token_mdp, token_stats
from xpo_jax.studies.exact import programs
from xpo_jax.testing import bandit
from xpo_jax.types import Array

VOCABULARY, DEPTH = 3, 4


class Tree(NamedTuple):
  """A token MDP; the axes are `S` states, `V` tokens.

  Attributes:
    reward_SV: reward of each token.
    ref_SV: log-probabilities of the reference, nats.
    next_SV: see `token_mdp.tree`.
    path_NT: every completion.
  """

  reward_SV: Array
  ref_SV: Array
  next_SV: Array
  path_NT: Array

  def total(self, x_SV: Array) -> Array:
    """Sums a table along every completion, `[N]`."""
    return token_mdp.along(x_SV, self.next_SV, self.path_NT).sum(-1)


def tree(key: Array) -> Tree:
  """A random one: rewards with standard deviation 1, a Dirichlet reference."""
  of_reward, of_ref = jax.random.split(key)
  next_SV = token_mdp.tree(VOCABULARY, DEPTH)
  reward_SV = jax.random.normal(of_reward, next_SV.shape)
  counts_V = jnp.full(VOCABULARY, 2.0)
  ref_SV = jnp.log(jax.random.dirichlet(of_ref, counts_V, (len(next_SV),)))
  paths = token_mdp.sequences(VOCABULARY, DEPTH)
  return Tree(reward_SV, ref_SV, next_SV, paths)


def pairs(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  count: int = 3000,
  steps: int = 300,
  learning_rate: float = 0.05,
) -> dict[str, Array]:
  """Trains a table of logits on pairs labelled by the sum of the tokens' rewards.

  Args:
    seed: of the MDP, the pairs and their labels.
    objective: of layout PAIR; may read tokens and the reference's KL.
    hparams: of the objective; its `beta` defines the optimum.
    count: pairs of independent samples of the reference, labelled by Bradley-Terry.
    steps: of Adam.
    learning_rate: of Adam.

  Returns:
    credit: correlation of beta log(policy / ref) of each token with the optimum's
      advantage, over the tokens of the chosen completions.
    credit_reward: its correlation with the tokens' own rewards.
    reward, kl: expected reward above the reference's, and KL(policy || ref), nats.
    root_kl: its root.
    seq_kl_chosen, seq_kl_rejected: KL(ref || policy) summed over the states of the
      completions, nats; seq_kl_gap: the second minus the first.
    entropy: of the policy's completions, nats.
    chosen: mean change of the chosen completions' log-probability, nats.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _pairs(make, static, count, steps)
  return program(jax.random.key(seed), traced, learning_rate)


@functools.cache
def _pairs(make, static, count, steps):
  @jax.jit
  def program(key, traced, learning_rate):
    keys = jax.random.split(key, 4)
    mdp = tree(keys[0])
    ref_N, return_N = mdp.total(mdp.ref_SV), mdp.total(mdp.reward_SV)
    both_B2 = jax.random.categorical(keys[1], ref_N, shape=(count, 2))
    chance_B = jax.nn.sigmoid(return_N[both_B2[:, 0]] - return_N[both_B2[:, 1]])
    wins_B1 = jax.random.bernoulli(keys[2], chance_B)[:, None]
    both_B2 = jnp.where(wins_B1, both_B2, both_B2[:, ::-1])

    def along(x_SV):
      return token_mdp.along(x_SV, mdp.next_SV, mdp.path_NT)[both_B2]

    def seq_kl(logp_SV):
      kl_S = token_stats.kl(mdp.ref_SV, logp_SV)
      return along(jnp.broadcast_to(kl_S[:, None], logp_SV.shape))

    ref_B2T = along(mdp.ref_SV)

    def view(logits_SV, _):
      logp_SV = jax.nn.log_softmax(logits_SV)
      logp_B2T = along(logp_SV)
      return scored.from_token_logps(
        logp_B2T, jnp.ones_like(logp_B2T), ref_B2T, ref_kl_BKT=seq_kl(logp_SV)
      )

    logits_SV = bandit.descend(
      programs.build(make, static, traced),
      view,
      mdp.ref_SV,
      keys[3],
      steps=steps,
      learning_rate=learning_rate,
    )
    logp_SV = jax.nn.log_softmax(logits_SV)
    beta = traced["beta"]
    best = token_mdp.soft_bellman(mdp.reward_SV, mdp.ref_SV, mdp.next_SV, beta, DEPTH)
    token_B2T = beta * (along(logp_SV) - ref_B2T)
    logp_N = mdp.total(logp_SV)
    kl = token_stats.kl(logp_N, ref_N)
    kl_B2 = seq_kl(logp_SV).sum(-1)
    credits = (along(best.advantage_SV), along(mdp.reward_SV))
    named = [
      jnp.corrcoef(token_B2T[:, 0].ravel(), x[:, 0].ravel())[0, 1] for x in credits
    ]
    return {
      "credit": named[0],
      "credit_reward": named[1],
      "reward": ((jnp.exp(logp_N) - jnp.exp(ref_N)) * return_N).sum(),
      "kl": kl,
      "root_kl": jnp.sqrt(kl),
      "seq_kl_chosen": kl_B2[:, 0].mean(),
      "seq_kl_rejected": kl_B2[:, 1].mean(),
      "seq_kl_gap": (kl_B2[:, 1] - kl_B2[:, 0]).mean(),
      "entropy": token_stats.entropy(logp_N),
      "chosen": (logp_N - ref_N)[both_B2[:, 0]].mean(),
    }

  return program


def identity(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  steps: int = 1500,
  learning_rate: float = 0.03,
) -> dict[str, Array]:
  """Minimises the population's loss over pairs that connect every completion; compares
  the policy with the optimum of the token MDP.

  Args:
    seed: of the MDP.
    objective: of layout PAIR; may read tokens.
    hparams: of the objective; its `beta` defines the optimum.
    steps: of Adam.
    learning_rate: of Adam.

  Returns:
    error: largest |beta log(policy / ref) - advantage|; scale: the largest advantage;
    credit: their correlation over all tokens of all states.
    beam1, beam3: share of the return to be had, of r + beta log ref, that beam search
      by the policy's likelihood loses with 1 and 3 beams; value1, value3: the same of
      search by the rewards so far plus the optimal value.
  """
  static, traced = programs.split(hparams)
  program = _identity(objectives.get(objective), static, steps)
  return program(jax.random.key(seed), traced, learning_rate)


@functools.cache
def _identity(make, static, steps):
  @jax.jit
  def program(key, traced, learning_rate):
    mdp = tree(key)
    beta = traced["beta"]
    N = len(mdp.path_NT)
    # Each completion with 12 others, in both orders: all returns are connected.
    apart_A = jnp.array([1, 2, 4, 8, 16, 32])
    left_B = jnp.repeat(jnp.arange(N), len(apart_A))
    right_B = (left_B + jnp.tile(apart_A, N)) % N
    first_B = jnp.concatenate([left_B, right_B])
    other_B = jnp.concatenate([right_B, left_B])
    return_N = mdp.total(mdp.reward_SV)
    weight_B = jax.nn.sigmoid(return_N[first_B] - return_N[other_B])

    def view(logits_SV, _):
      logp_NT, ref_NT = (
        token_mdp.along(x_SV, mdp.next_SV, mdp.path_NT)
        for x_SV in (jax.nn.log_softmax(logits_SV), mdp.ref_SV)
      )
      pair_B2 = jnp.stack([first_B, other_B], 1)
      return scored.from_token_logps(
        logp_NT[pair_B2],
        jnp.ones((len(pair_B2), 2, DEPTH)),
        ref_NT[pair_B2],
        weight_B=weight_B,
      )

    logits_SV = bandit.descend(
      programs.build(make, static, traced),
      view,
      mdp.ref_SV,
      key,
      steps=steps,
      learning_rate=learning_rate,
    )
    logp_SV = jax.nn.log_softmax(logits_SV)
    best = token_mdp.soft_bellman(mdp.reward_SV, mdp.ref_SV, mdp.next_SV, beta, DEPTH)
    gap_SV = beta * (logp_SV - mdp.ref_SV) - best.advantage_SV
    shaped_SV = mdp.reward_SV + beta * mdp.ref_SV
    worth_N = mdp.total(shaped_SV)

    # Summed along a prefix: its rewards, plus the value of its end, less the prompt's.
    value_SV = best.q_SV - best.value_S[:, None]

    def lost(guide_SV, width):
      token_WT, _ = token_mdp.beam_search(guide_SV, mdp.next_SV, width, DEPTH)
      found = token_mdp.along(shaped_SV, mdp.next_SV, token_WT[0]).sum()
      return (worth_N.max() - found) / (worth_N.max() - worth_N.mean())

    return {
      "error": jnp.abs(gap_SV).max(),
      "scale": jnp.abs(best.advantage_SV).max(),
      "credit": jnp.corrcoef(
        (gap_SV + best.advantage_SV).ravel(), best.advantage_SV.ravel()
      )[0, 1],
      "beam1": lost(logp_SV, 1),
      "beam3": lost(logp_SV, 3),
      "value1": lost(value_SV, 1),
      "value3": lost(value_SV, 3),
    }

  return program
