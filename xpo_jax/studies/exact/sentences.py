"""Completions of varying length: a tree of tokens of which one ends the completion.

Every state has logits of its own, every completion is enumerated: reward, length, KL
and repetition are expectations. As `bandits`, each function is a cell.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xpo_jax import objectives, scored
from xpo_jax.ops import token_mdp, token_stats
from xpo_jax.studies.exact import paths, programs
from xpo_jax.testing import bandit
from xpo_jax.types import Array, Objective, Scored

END, VOCABULARY, DEPTH = 0, 4, 5
TEMPERATURE = 0.5  # of the labels, in standard deviations of the reward


class Sentences(NamedTuple):
  """All completions of a prompt; the axes are `S` states, `V` tokens, `N` completions.

  Attributes:
    ref_SV: log-probabilities of the reference, nats.
    next_SV: see `token_mdp.tree`; `END` leads to the terminal state.
    path_NT: every completion, `END` after its last token.
    mask_NT: 1 up to the first `END`, which counts; at `DEPTH` tokens there is none.
    state_NT: the state before each token.
    reward_N: standard deviation 1, whatever the length.
  """

  ref_SV: Array
  next_SV: Array
  path_NT: Array
  mask_NT: Array
  state_NT: Array
  reward_N: Array

  @property
  def length_N(self) -> Array:
    """Tokens of each completion."""
    return self.mask_NT.sum(1)

  def logp_N(self, logits_SV: Array) -> Array:
    """Log-probability of every completion, nats."""
    logp_SV = jax.nn.log_softmax(logits_SV)
    return token_mdp.along(logp_SV, self.next_SV, self.path_NT).sum(1)

  def scored(
    self,
    objective: Objective,
    logits_SV: Array,
    reference_SV: Array,
    at_BK: Array,
    **columns: Array,
  ) -> Scored:
    """Completions as a batch, with all that an objective reads of their tokens."""
    state_BKT = self.state_NT[at_BK]
    return scored.from_logits(
      logits_SV[state_BKT],
      self.path_NT[at_BK],
      self.mask_NT[at_BK],
      reference_SV[state_BKT],
      stats=objective.stats,
      **columns,
    )


def world(key: Array, repeats: float = 0.0) -> Sentences:
  """A random one: Dirichlet next tokens, independent rewards of completions.

  Args:
    key: PRNG key.
    repeats: nats that the reference adds to the token before.
  """
  of_ref, of_reward = jax.random.split(key)
  next_SV = token_mdp.tree(VOCABULARY, DEPTH)
  next_SV = next_SV.at[:, END].set(len(next_SV))
  path_NT, mask_NT = _completions()
  before_S = (np.arange(len(next_SV)) - 1) % VOCABULARY
  habit_SV = repeats * jax.nn.one_hot(before_S, VOCABULARY)
  habit_SV = habit_SV.at[0].set(0).at[:, END].set(0)
  share_V = jnp.ones(VOCABULARY).at[1:].set(2.0)
  ref_SV = jnp.log(jax.random.dirichlet(of_ref, share_V, (len(next_SV),)))
  here_SV = jnp.arange(len(next_SV))[:, None] + jnp.zeros((1, VOCABULARY), int)
  return Sentences(
    jax.nn.log_softmax(ref_SV + habit_SV),
    next_SV,
    jnp.asarray(path_NT),
    jnp.asarray(mask_NT),
    token_mdp.along(here_SV, next_SV, jnp.asarray(path_NT)),
    jax.random.normal(of_reward, (len(path_NT),)),
  )


@functools.cache
def _completions() -> tuple[np.ndarray, np.ndarray]:
  path_NT = np.array(list(itertools.product(range(VOCABULARY), repeat=DEPTH)))
  ended_NT = np.cumsum(path_NT == END, 1) - (path_NT == END) > 0
  once_N = ((path_NT == END) | ~ended_NT).all(1)  # `END` alone after the first
  return path_NT[once_N], (~ended_NT[once_N]).astype(np.float32)


def repeated(path_NT: Array, mask_NT: Array) -> Array:
  """Share of a completion's tokens that repeat the one before, `[N]`; not `END`."""
  again_NT = (path_NT[:, 1:] == path_NT[:, :-1]) & (path_NT[:, 1:] != END)
  return (again_NT * mask_NT[:, 1:]).sum(1) / mask_NT.sum(1)


def measures(task: Sentences, logits_SV: Array) -> dict[str, Array]:
  """Expectations under a policy, of reward and length minus the reference's.

  Returns:
    reward; length, tokens; kl to the reference, nats; root_kl; repetition, `repeated`;
    correlation: of a completion's log-probability per token with its length, over
    samples of the reference.
  """
  logp_N, ref_N = task.logp_N(logits_SV), task.logp_N(task.ref_SV)
  p_N, q_N = jnp.exp(logp_N), jnp.exp(ref_N)
  kl = token_stats.kl(logp_N, ref_N)
  return {
    "reward": (p_N - q_N) @ task.reward_N,
    "length": (p_N - q_N) @ task.length_N,
    "kl": kl,
    "root_kl": jnp.sqrt(kl),
    "repetition": p_N @ repeated(task.path_NT, task.mask_NT),
    "correlation": _correlation(logp_N / task.length_N, task.length_N, q_N),
  }


def _correlation(x_N: Array, y_N: Array, p_N: Array) -> Array:
  x_N, y_N = x_N - p_N @ x_N, y_N - p_N @ y_N
  return p_N @ (x_N * y_N) / jnp.sqrt((p_N @ x_N**2) * (p_N @ y_N**2))


def draw(key: Array, task: Sentences, writer_SV: Array, count: int) -> Array:
  """Pairs of samples of a policy, labelled by Bradley-Terry; `[B, 2]`, better first."""
  of_pairs, of_labels = jax.random.split(key)
  both_B2 = jax.random.categorical(of_pairs, task.logp_N(writer_SV), shape=(count, 2))
  reward_B2 = task.reward_N[both_B2] / TEMPERATURE
  wins_B = jax.random.bernoulli(
    of_labels, jax.nn.sigmoid(reward_B2[:, 0] - reward_B2[:, 1])
  )
  return jnp.where(wins_B[:, None], both_B2, both_B2[:, ::-1])


def pairs(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  per_token: bool = True,
  count: int = 400,
  steps: int = 300,
  learning_rate: float = 0.01,
) -> dict[str, Array]:
  """Trains a table of logits on pairs of the reference's completions.

  Args:
    seed: of task, pairs and the objective's draws.
    objective: of layout PAIR.
    hparams: of the objective.
    per_token: False: an average over tokens is a sum, every length being 1.
    count: pairs, of which those of one completion twice are left out.
    steps: of Adam.
    learning_rate: of Adam.

  Returns:
    `measures` along training, see `paths.descend`.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _pairs(make, static, per_token, count, steps)
  return program(jax.random.key(seed), traced, learning_rate)


@functools.cache
def _pairs(make, static, per_token, count, steps):
  @jax.jit
  def program(key, traced, learning_rate):
    objective = programs.build(make, static, traced)
    keys = jax.random.split(key, 3)
    task = world(keys[0])
    at_B2 = draw(keys[1], task, task.ref_SV, count)
    weight_B = (at_B2[:, 0] != at_B2[:, 1]).astype(jnp.float32)

    def view(logits_SV, _):
      s = task.scored(objective, logits_SV, task.ref_SV, at_B2, weight_B=weight_B)
      return s if per_token else s.replace(length_BK=jnp.ones_like(s.length_BK))

    return paths.descend(
      objective,
      view,
      task.ref_SV,
      keys[2],
      lambda logits_SV: measures(task, logits_SV),
      optax.adam(learning_rate),
      steps=steps,
    )

  return program


def domain(
  seed: int,
  *,
  first: Mapping[str, Any],
  second: Mapping[str, Any] | None = None,
  count: int = 400,
  learning_rate: float = 0.01,
) -> dict[str, Array]:
  """Adapts a base policy to pairs that another policy wrote, in one stage or two.

  Args:
    seed: of base, writer, pairs and the objectives' draws.
    first: {"objective": its name, of layout PAIR or DEMO, "hparams": .., "steps": of
      Adam}, from the base.
    second: the same from the first stage's policy, which is its reference; None: none.
    count: pairs.
    learning_rate: of Adam.

  Returns:
    chosen, rejected: expected change of the log-probability of a chosen and a rejected
    completion, nats, over all pairs that the writer may write; reward: expected reward
    minus the writer's.
  """
  stages = [first] if second is None else [first, second]
  split = [programs.split(stage["hparams"]) for stage in stages]
  static = tuple(
    (objectives.get(stage["objective"]), own, stage["steps"])
    for stage, (own, _) in zip(stages, split, strict=True)
  )
  traced = [numbers for _, numbers in split]
  return _domain(static, count)(jax.random.key(seed), traced, learning_rate)


@functools.cache
def _domain(stages, count):
  @jax.jit
  def program(key, traced, learning_rate):
    keys = jax.random.split(key, 3 + len(stages))
    task = world(keys[0])
    writer_SV = world(keys[1]).ref_SV
    at_B2 = draw(keys[2], task, writer_SV, count)
    weight_B = (at_B2[:, 0] != at_B2[:, 1]).astype(jnp.float32)
    logits_SV = task.ref_SV
    for (make, static, steps), own, key in zip(stages, traced, keys[3:], strict=True):
      objective, reference_SV = programs.build(make, static, own), logits_SV

      def view(logits_SV, _, objective=objective, reference_SV=reference_SV):
        return task.scored(objective, logits_SV, reference_SV, at_B2, weight_B=weight_B)

      logits_SV = bandit.descend(
        objective, view, logits_SV, key, steps=steps, learning_rate=learning_rate
      )
    logp_N, writer_N = task.logp_N(logits_SV), task.logp_N(writer_SV)
    change_N = logp_N - task.logp_N(task.ref_SV)
    chosen_N, rejected_N = labelled(writer_N, task.reward_N)
    return {
      "chosen": chosen_N @ change_N,
      "rejected": rejected_N @ change_N,
      "reward": (jnp.exp(logp_N) - jnp.exp(writer_N)) @ task.reward_N,
    }

  return program


def labelled(logp_N: Array, reward_N: Array) -> tuple[Array, Array]:
  """Laws of the chosen and of the rejected one of two samples, labelled as in `draw`.

  Args:
    logp_N: log-probabilities of the samples' policy, nats.
    reward_N: rewards.
  """
  p_N = jnp.exp(logp_N)
  win_NN = jax.nn.sigmoid((reward_N[:, None] - reward_N[None]) / TEMPERATURE)
  chosen_N = 2 * p_N * (win_NN @ p_N)
  return chosen_N, 2 * p_N - chosen_N
