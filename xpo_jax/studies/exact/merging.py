"""SFT and DPO one after the other, or in parallel and merged as weights.

A policy adds a small network's score of (prompt, completion) to the base's; a policy
linear in its parameters could not tell the orders apart. Skill and preferences are of
other prompts, which vary along other features (`pretraining.worlds`). As `bandits`,
each function is a cell.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from xpo_jax import objectives, scored
from xpo_jax.models import merge
from xpo_jax.studies.exact import bandits, pretraining, programs
from xpo_jax.testing import bandit
from xpo_jax.testing.bandit import Bandit
from xpo_jax.types import Array, Objective, Params, Scored

SEEN = bandits.PROMPTS // 2
WIDTH, SKILL = 32, 1.5  # hidden units; standard deviation of the skill's logits
NEGLIGIBLE = 0.01  # of a difference's largest entry
Order = Literal["sft", "dpo", "sft, dpo", "dpo, sft", "ties", "linear"]


def logp(task: Bandit, params: Params) -> Array:
  """Log-probabilities of the policy, `[X, Y]`, nats."""
  hidden_XYH = jnp.tanh(task.feature_XYD @ params["inner"])
  return jax.nn.log_softmax(task.ref_logp_XY + hidden_XYH @ params["outer"])


def adapt(
  objective: Objective,
  view: Callable[[Params], Scored],
  start: Params,
  *,
  sparsity: float | Array,
  steps: int,
  learning_rate: float | Array,
) -> Params:
  """Minimises an objective with Adam, and an L1 norm of the change by a proximal step.

  Args:
    objective: without state and draws.
    view: parameters -> batch.
    start: parameters to start from.
    sparsity: weight of the norm, in units of Adam's step: each update moves every
      entry of the change towards 0 by this times the learning rate.
    steps: number of updates; static.
    learning_rate: of Adam.
  """
  chain = optax.adam(learning_rate)

  def shrunk(x: Array) -> Array:
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - sparsity * learning_rate, 0)

  def step(carry, _):
    change, moments = carry
    gradient = jax.grad(
      lambda x: scored.evaluate(objective, view(merge.apply(start, x)), ()).loss
    )(change)
    update, moments = chain.update(gradient, moments)
    change = jax.tree.map(shrunk, optax.apply_updates(change, update))
    return (change, moments), None

  zero = jax.tree.map(jnp.zeros_like, start)
  (change, _), _ = jax.lax.scan(step, (zero, chain.init(zero)), length=steps)
  return merge.apply(start, change)


def density(change: Params) -> Array:
  """Fraction of entries that are not negligible."""
  size_N = jnp.concatenate([jnp.abs(x).ravel() for x in jax.tree.leaves(change)])
  return (size_N > NEGLIGIBLE * size_N.max()).mean()


def train(
  seed: int,
  *,
  order: Order,
  sft: Mapping[str, Any],
  preference: Mapping[str, Any],
  sparsity: float = 0.0,
  keep: float = 0.5,
  count: int = 300,
  steps: int = 200,
  learning_rate: float = 0.01,
) -> dict[str, Array]:
  """Teaches a skill by demonstrations and preferences by pairs.

  Args:
    seed: of the tasks, the base and the data.
    order: one of the two alone; one from where the other ends, which is its reference;
      or both from the base, merged by TIES or by the sum of the differences.
    sft: {"objective": its name, of layout DEMO, "hparams": ..}.
    preference: the same, of layout PAIR.
    sparsity: of SFT's change, see `adapt`.
    keep: fraction of entries that TIES keeps of a difference.
    count: demonstrations, and pairs.
    steps: of each of the two.
    learning_rate: of Adam.

  Returns:
    skill: share of the base's total variation to the target that is gone, on held-out
    prompts of the skill; reward: expected, above the base's, on held-out prompts of the
    preferences; score: mean of both, each over what SFT without sparsity, or DPO, has
    alone; sft_density, dpo_density: `density` of the change of each from the base.
  """
  split = [programs.split(part["hparams"]) for part in (sft, preference)]
  makes = tuple(objectives.get(part["objective"]) for part in (sft, preference))
  static = tuple(own for own, _ in split)
  program = _train(order, makes, static, keep, count, steps)
  traced = [numbers for _, numbers in split]
  return program(jax.random.key(seed), traced, sparsity, learning_rate)


@functools.cache
def _train(order, makes, static, keep, count, steps):
  @jax.jit
  def program(key, traced, sparsity, learning_rate):
    keys = jax.random.split(key, 8)
    task, skill_task = pretraining.worlds(keys[0])
    shape = (bandits.FEATURES, WIDTH)
    base = {
      "inner": jax.random.normal(keys[2], shape) / shape[0] ** 0.5,
      "outer": 0.3 * jax.random.normal(keys[3], (WIDTH,)) / WIDTH**0.5,
    }
    direction_D = jax.random.normal(keys[4], shape[:1]) * SKILL / shape[0] ** 0.5
    target_XY = jax.nn.log_softmax(
      skill_task.ref_logp_XY + skill_task.feature_XYD @ direction_D
    )
    prompt_B = jax.random.randint(keys[5], (count,), 0, SEEN)
    demo_B = jax.random.categorical(keys[6], target_XY[prompt_B])
    drawn = bandit.draw(task, count, keys[7], prompts=SEEN)
    imitate, prefer = map(programs.build, makes, static, traced)
    fit = functools.partial(adapt, steps=steps, learning_rate=learning_rate)

    def learn_skill(start, sparsity):
      at = (prompt_B[:, None], demo_B[:, None])
      return fit(imitate, lambda x: _batch(skill_task, x, at), start, sparsity=sparsity)

    def learn_preferences(start):
      at = (drawn.prompt_B[:, None], drawn.completion_B2)
      return fit(prefer, lambda x: _batch(task, x, at, start), start, sparsity=0.0)

    skilled, preferring = learn_skill(base, sparsity), learn_preferences(base)
    deltas = [merge.delta(skilled, base), merge.delta(preferring, base)]
    ends = {
      "sft": lambda: skilled,
      "dpo": lambda: preferring,
      "sft, dpo": lambda: learn_preferences(skilled),
      "dpo, sft": lambda: learn_skill(preferring, sparsity),
      "ties": lambda: merge.apply(base, merge.ties(deltas, keep)),
      "linear": lambda: merge.apply(base, merge.task_arithmetic(deltas, [1.0, 1.0])),
    }

    def skill(params):
      distances = [
        jnp.abs(jnp.exp(target_XY) - jnp.exp(logp(skill_task, x)))[SEEN:].sum(1).mean()
        for x in (params, base)
      ]
      return 1 - distances[0] / distances[1]

    def reward(params):
      gain_XY = jnp.exp(logp(task, params)) - jnp.exp(logp(task, base))
      return (gain_XY * task.reward_XY)[SEEN:].sum(1).mean()

    end = ends[order]()
    alone = skill(learn_skill(base, 0.0)), reward(preferring)
    return {
      "skill": skill(end),
      "reward": reward(end),
      "score": (skill(end) / alone[0] + reward(end) / alone[1]) / 2,
      "sft_density": density(deltas[0]),
      "dpo_density": density(deltas[1]),
    }

  return program


def _batch(task: Bandit, params: Params, at, reference: Params | None = None) -> Scored:
  seen = jax.tree.map(lambda x: x[:SEEN], task)
  logp_BK = logp(seen, params)[at]
  ref_BK = None if reference is None else logp(seen, reference)[at]
  return scored.from_sequence_logps(logp_BK, jnp.ones_like(logp_BK), ref_BK)
