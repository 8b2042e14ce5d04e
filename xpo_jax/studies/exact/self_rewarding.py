"""A policy that judges its own samples: one representation, two heads.

Policy and judge are linear in a shared, learnt representation of the features, so that
training the policy moves the judge. As `bandits`, each function is a cell; everything
is measured on held-out prompts.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import bandits, programs
from xpo_jax.testing import bandit
from xpo_jax.types import Array

SEEN = bandits.PROMPTS // 2
WIDTH, COSINE = 8, 0.5  # of the representation; between the heads
Judge = Literal["own", "first"]


def heads(key: Array) -> tuple[Array, Array]:
  """Fixed unit vectors of policy and judge, `[H]` each, at `COSINE`."""
  basis_HH, _ = jnp.linalg.qr(jax.random.normal(key, (WIDTH, WIDTH)))
  policy_H = basis_HH[:, 0]
  return policy_H, COSINE * policy_H + (1 - COSINE**2) ** 0.5 * basis_HH[:, 1]


def iterate(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  judge: Judge,
  imitation: Mapping[str, Any],
  comparison: Mapping[str, Any],
  demonstrations: int = 60,
  judgements: int = 60,
  samples: int = 4,
  noise: float = 1.0,
  steps: int = 100,
  learning_rate: float = 0.01,
) -> dict[str, Array]:
  """Trains model 1 on people's data, then models 2 and 3 on pairs that a judge makes.

  Model 1 imitates the best of 3 samples and learns to judge from comparisons. A round
  draws samples of the current policy for new prompts, scores each three times and pairs
  the best with the worst.

  Args:
    seed: of the task, the data and all draws.
    objective: of layout PAIR; its reference is the round's first policy.
    hparams: of the objective.
    judge: "own", the current model's, or "first", that of model 1.
    imitation: {"objective": its name, of layout DEMO, "hparams": names only}.
    comparison: the same, of preference models.
    demonstrations: of people.
    judgements: comparisons of people, labelled by Bradley-Terry.
    samples: of a prompt.
    noise: standard deviation of an error of a score, in standard deviations of the
      scores.
    steps: of Adam in a round.
    learning_rate: of Adam.

  Returns:
    step: the model, 1 to 3; reward above the reference's; accuracy: fraction of all
    pairs of completions that its judge orders as their rewards; kl to the reference.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  people = tuple(
    (objectives.get(part["objective"]), tuple(part["hparams"].items()))
    for part in (imitation, comparison)
  )
  program = _iterate(
    make, static, people, judge, demonstrations, judgements, samples, steps
  )
  return program(jax.random.key(seed), traced, noise, learning_rate)


@functools.cache
def _iterate(make, static, people, judge, demonstrations, judgements, samples, steps):
  @jax.jit
  def program(key, traced, noise, learning_rate):
    of_task, of_heads, of_first, of_rounds = jax.random.split(key, 4)
    task = bandits.world(of_task, False)
    policy_H, judge_H = heads(of_heads)

    def first(key):
      """Model 1: imitation and judging, of people, from a random representation."""
      keys = jax.random.split(key, 6)
      start = jax.random.normal(keys[0], (WIDTH, bandits.FEATURES)) * 0.1
      prompt_B = jax.random.randint(keys[1], (demonstrations,), 0, SEEN)
      draws_3B = jax.random.categorical(
        keys[2], task.ref_logp_XY[prompt_B], shape=(3, demonstrations)
      )
      best_B = task.reward_XY[prompt_B, draws_3B].argmax(0)
      demo_B = jnp.take_along_axis(draws_3B, best_B[None], 0)[0]
      drawn = bandit.draw(task, judgements, keys[3], prompts=SEEN)
      pair_at = (drawn.prompt_B[:, None], drawn.completion_B2)
      imitate, compare = (programs.build(*part, {}) for part in people)

      def step(params, _):
        def loss(params):
          demo_B1 = bandit.logp(task, policy_H @ params)[prompt_B, demo_B][:, None]
          seen = scored.from_sequence_logps(demo_B1, jnp.ones_like(demo_B1))
          head_B2T = (task.feature_XYD @ (judge_H @ params))[pair_at][..., None]
          judged = scored.from_token_logps(
            None, jnp.ones_like(head_B2T), reward_head_BKT=head_B2T
          )
          return (
            scored.evaluate(imitate, seen, imitate.init()).loss
            + scored.evaluate(compare, judged, compare.init()).loss
          )

        return params - 0.1 * jax.grad(loss)(params), None

      params, _ = jax.lax.scan(step, start, length=300)
      return params

    def play(params, first_params, key):
      """A round: samples, scores, pairs, training."""
      keys = jax.random.split(key, 3)
      reference_XY = bandit.logp(task, policy_H @ params)
      row_X1 = jnp.arange(SEEN)[:, None]
      sample_XK = jax.random.categorical(
        keys[0], reference_XY[:SEEN], shape=(samples, SEEN)
      ).T
      judging = first_params if judge == "first" else params
      score_XY = task.feature_XYD @ (judge_H @ judging)
      score_XK = score_XY[row_X1, sample_XK]
      error_XK = jax.random.normal(keys[1], (3, *score_XK.shape)).mean(0)
      score_XK += noise * score_XY.std() * error_XK
      ends_X2 = jnp.stack([score_XK.argmax(1), score_XK.argmin(1)], 1)
      at = (row_X1, jnp.take_along_axis(sample_XK, ends_X2, 1))

      def view(params, _):
        logp_X2 = bandit.logp(task, policy_H @ params)[at]
        return scored.from_sequence_logps(
          logp_X2, jnp.ones_like(logp_X2), reference_XY[at]
        )

      return bandit.descend(
        programs.build(make, static, traced),
        view,
        params,
        keys[2],
        steps=steps,
        learning_rate=learning_rate,
      )

    models = [first(of_first)]
    for own in jax.random.split(of_rounds):
      models.append(play(models[-1], models[0], own))
    params_M = jnp.stack(models)
    found = jax.vmap(lambda x: bandits.measures(task, policy_H @ x, SEEN))(params_M)
    judged = jax.vmap(lambda x: bandit.measure(task, judge_H @ x, SEEN))(params_M)
    return {
      "step": 1.0 + jnp.arange(len(models)),
      "reward": found["reward"],
      "kl": found["kl"],
      "accuracy": judged.accuracy,
    }

  return program
