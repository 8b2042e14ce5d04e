"""Labels of an AI's confidence: kept, rounded or clipped, and what a policy learns.

As `bandits`, each function is a cell.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from xpo_jax import objectives, scored
from xpo_jax.ops import ai_labels
from xpo_jax.studies.exact import bandits
from xpo_jax.testing import bandit
from xpo_jax.types import Array

SEEN = bandits.PROMPTS // 2
Labels = Literal["soft", "hard", "clamped"]


def labels(logit_B: Array, kind: Labels) -> Array:
  """Labels of pairs, `[B, 2]`, from a labeller's logit that the first is better."""
  p_B2 = jax.nn.sigmoid(jnp.stack([logit_B, -logit_B], 1))
  if kind == "hard":
    return (p_B2 > 0.5) * 1.0
  return ai_labels.clamped(p_B2) if kind == "clamped" else p_B2


def learn(
  seed: int,
  *,
  objective: str,
  kind: Labels,
  confidence: float,
  kl: float = 0.5,
  beta: float = 1.0,
  noise: float = 1.0,
  count: int = 200,
) -> dict[str, Array]:
  """Fits a preference model to an AI's labels and optimises a policy against it.

  The labeller's logit is the gap of rewards over the people's temperature plus noise,
  times its confidence. The policy is the exact optimum of the fitted reward on
  held-out prompts.

  Args:
    seed: of the task, the pairs and the noise, the same for any labels.
    objective: of preference models, layout PAIR, such as `bradley_terry`.
    kind: see `labels`.
    confidence: factor of the logit; 1: no more certain than the gap is.
    kl: at which rewards are compared, nats.
    beta: of the optimum whose KL is measured.
    noise: standard deviation of a logit's error, nats.
    count: pairs of the reference's samples.

  Returns:
    reward: true reward above the reference's at `kl`; drift: KL of the optimum at
    `beta`, nats; accuracy: fraction of all pairs that the fitted reward orders as the
    true one.
  """
  program = _learn(objectives.get(objective), kind, count)
  return program(jax.random.key(seed), confidence, kl, beta, noise)


@functools.cache
def _learn(make, kind, count):
  @jax.jit
  def program(key, confidence, kl, beta, noise):
    of_task, of_pairs = jax.random.split(key)
    task = bandits.world(of_task, False)
    keys = jax.random.split(of_pairs, 3)
    prompt_B = jax.random.randint(keys[0], (count,), 0, SEEN)
    both_B2 = jax.random.categorical(
      keys[1], task.ref_logp_XY[prompt_B], shape=(2, count)
    ).T
    at = (prompt_B[:, None], both_B2)
    gap_B = -jnp.diff(task.reward_XY[at], axis=1)[:, 0]
    error_B = noise * jax.random.normal(keys[2], (count,))
    logit_B = confidence * (gap_B / bandits.DATA["temperature"] + error_B)
    label_B2 = labels(logit_B, kind)
    different_B = (both_B2[:, 0] != both_B2[:, 1]) * 1.0
    # A pair is there in both orders, each weighted by its label: their sum is the
    # cross-entropy of a soft label.
    orders_B2 = jnp.concatenate([both_B2, both_B2[:, ::-1]])
    fitted_at = (jnp.tile(prompt_B, 2)[:, None], orders_B2)
    weight_B = (label_B2 * different_B[:, None]).T.ravel()

    def view(theta, _):
      head_B2T = (task.feature_XYD[fitted_at] @ theta)[..., None]
      return scored.from_token_logps(
        None,
        jnp.ones_like(head_B2T),
        reward_head_BKT=head_B2T,
        weight_B=weight_B,
      )

    theta_D = bandit.descend(
      make(),
      view,
      jnp.zeros(bandits.FEATURES),
      key,
      steps=400,
      learning_rate=0.05,
    )

    def tilted(strength):
      return bandit.measure(task, strength * theta_D, SEEN)

    equal = bandits.measured_at(kl, tilted)
    return {
      "reward": equal.reward,
      "drift": tilted(1 / beta).kl,
      "accuracy": equal.accuracy,
    }

  return program
