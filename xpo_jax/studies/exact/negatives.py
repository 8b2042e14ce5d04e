"""Undesirable completions alone: what they take away, and what they leave.

As `bandits`, each function is a cell; a policy linear in shared features is trained on
half of the prompts and measured on the others.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import bandits, paths, programs
from xpo_jax.testing import bandit
from xpo_jax.types import Array, Layout

SEEN = bandits.PROMPTS // 2
HARMFUL = 3  # completions of a prompt


def avoid(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  samples: int = 11,
  sign: float = 1.0,
  count: int = 100,
  steps: int = 300,
  learning_rate: float = 0.03,
) -> dict[str, Array]:
  """Trains on harmful completions, with samples of the first policy as anchors.

  A prompt's harmful completions are those that score most along a hidden direction of
  the features; annotators find them among the reference's samples.

  Args:
    seed: of the task, as of `bandits.pairs`, and the data.
    objective: `d2o`, or of layout RATED or DEMO, which sees the harmful one alone.
    hparams: of the objective.
    samples: anchors of a prompt.
    sign: of the loss; -1 ascends.
    count: prompts with a harmful completion.
    steps: of Adam.
    learning_rate: of Adam.

  Returns:
    Along training, see `paths.descend`: harm, probability of a harmful completion;
    benign_kl: KL(policy || reference) given that the completion is not, nats.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _avoid(make, static, samples, count, steps)
  return program(jax.random.key(seed), traced, sign, learning_rate)


@functools.cache
def _avoid(make, static, samples, count, steps):
  @jax.jit
  def program(key, traced, sign, learning_rate):
    objective = programs.build(make, static, traced)
    of_task, of_data, of_training = jax.random.split(key, 3)
    task = bandits.world(of_task, False)
    keys = jax.random.split(of_data, 4)
    hidden_D = jax.random.normal(keys[0], (bandits.FEATURES,))
    ranking_XY = (task.feature_XYD @ hidden_D).argsort(1).argsort(1)
    harm_XY = ranking_XY >= bandits.COMPLETIONS - HARMFUL
    prompt_B = jax.random.randint(keys[1], (count,), 0, SEEN)
    harmful_BY = jnp.where(harm_XY, task.ref_logp_XY, -jnp.inf)[prompt_B]
    bad_B1 = jax.random.categorical(keys[2], harmful_BY)[:, None]
    columns_BK = bad_B1
    if objective.layout is Layout.RANKED:
      anchor_BK = jax.random.categorical(
        keys[3], task.ref_logp_XY[prompt_B], shape=(samples, count)
      ).T
      columns_BK = jnp.concatenate([anchor_BK, bad_B1], 1)
    at = (prompt_B[:, None], columns_BK)
    desirable_BK = jnp.ones(columns_BK.shape).at[:, -1].set(0)
    ref_BKT = task.ref_logp_XY[at][..., None]

    def view(theta, _):
      return scored.from_token_logps(
        bandit.logp(task, theta)[at][..., None],
        jnp.ones_like(ref_BKT),
        ref_BKT,
        desirable_BK=desirable_BK,
        extra={"ref_minus_logp_BKT": ref_BKT, "ref_plus_logp_BKT": ref_BKT},
      )

    def measure(theta):
      logp_XY, ref_XY = bandit.logp(task, theta)[SEEN:], task.ref_logp_XY[SEEN:]
      benign_XY = jnp.where(harm_XY[SEEN:], -1e9, 0.0)
      policy_XY, first_XY = (
        jax.nn.log_softmax(x + benign_XY) for x in (logp_XY, ref_XY)
      )
      ratio_XY = jnp.where(harm_XY[SEEN:], 0, policy_XY - first_XY)
      return {
        "harm": (jnp.exp(logp_XY) * harm_XY[SEEN:]).sum(1).mean(),
        "benign_kl": (jnp.exp(policy_XY) * ratio_XY).sum(1).mean(),
      }

    return paths.descend(
      objective,
      view,
      jnp.zeros(bandits.FEATURES),
      of_training,
      measure,
      optax.chain(optax.scale(sign), optax.adam(learning_rate)),
      steps=steps,
    )

  return program
