"""Unlearning a habit of repeating tokens, in rounds of the policy's own pairs.

Completions are those of `sentences`, of a reference that likes to repeat the token
before; the preferred one of a pair repeats less. As `bandits`, each function is a cell.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xpo_jax import objectives
from xpo_jax.studies.exact import paths, programs, sentences
from xpo_jax.types import Array, Layout

HABIT = 2.0  # nats that the reference adds to the token before


def iterate(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  rounds: int,
  count: int,
  steps: int,
  learning_rate: float = 0.01,
) -> dict[str, Array]:
  """Trains in rounds, each on pairs of the policy that the round before has left.

  Args:
    seed: of the task, the pairs and the objective's draws.
    objective: of layout PAIR, whose reference is the round's first policy, or RATED,
      for which the better completion is desirable and the worse one is not.
    hparams: of the objective.
    rounds: number.
    count: pairs of a round; ties are left out.
    steps: of Adam in a round.
    learning_rate: of Adam.

  Returns:
    step: updates of all rounds; `sentences.measures` at each round's `paths.ends`.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _iterate(make, static, rounds, count, steps)
  return program(jax.random.key(seed), traced, learning_rate)


@functools.cache
def _iterate(make, static, rounds, count, steps):
  @jax.jit
  def program(key, traced, learning_rate):
    objective = programs.build(make, static, traced)
    of_task, of_rounds = jax.random.split(key)
    task = sentences.world(of_task, HABIT)
    repeated_N = sentences.repeated(task.path_NT, task.mask_NT)
    logits_SV, parts = task.ref_SV, []
    for done in range(rounds):
      of_pairs, of_training = jax.random.split(jax.random.fold_in(of_rounds, done))
      at_B2 = jax.random.categorical(of_pairs, task.logp_N(logits_SV), shape=(count, 2))
      gap_B = jnp.diff(repeated_N[at_B2], axis=1)[:, 0]
      at_B2 = jnp.where(gap_B[:, None] >= 0, at_B2, at_B2[:, ::-1])
      view = _view(objective, task, logits_SV, at_B2, (gap_B != 0) * 1.0)
      path = paths.descend(
        objective,
        view,
        logits_SV,
        of_training,
        lambda logits_SV: {"logits": logits_SV},
        optax.adam(learning_rate),
        steps=steps,
      )
      logits_SV = path["logits"][-1]
      found = jax.vmap(lambda x_SV: sentences.measures(task, x_SV))(path["logits"])
      parts.append(found | {"step": path["step"] + done * steps})
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

  return program


def _view(objective, task, reference_SV, at_B2, weight_B):
  """The batch under parameters; each side of a pair is a row of layout RATED."""
  if objective.layout is not Layout.RATED:
    return lambda logits_SV, _: task.scored(
      objective, logits_SV, reference_SV, at_B2, weight_B=weight_B
    )
  at_B1 = at_B2.T.reshape(-1, 1)
  desirable_B1 = jnp.repeat(jnp.array([1.0, 0.0]), len(at_B2))[:, None]
  return lambda logits_SV, _: task.scored(
    objective,
    logits_SV,
    reference_SV,
    at_B1,
    desirable_BK=desirable_B1,
    weight_B=jnp.tile(weight_B, 2),
  )
