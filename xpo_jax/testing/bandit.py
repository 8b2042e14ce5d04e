"""An exactly solvable contextual bandit: every completion of a prompt is enumerated.

Prompts share a linear policy over features of (prompt, completion), so that a policy
trained on some prompts can be evaluated on others; reward, KL and length are
expectations over all completions, not sample means. Labels may be flipped, or biased
towards the longer completion.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from xpo_jax import scored
from xpo_jax.ops import token_stats
from xpo_jax.types import Array, Objective, Params, Scored


class Bandit(NamedTuple):
  """A bandit task; the axes are `X` prompts, `Y` completions, `D` features.

  Attributes:
    feature_XYD: features of a prompt and a completion, the input of the policy.
    reward_XY: true reward, standard deviation 1 over completions.
    length_XY: tokens of each completion, at least 1.
    ref_logp_XY: log-probability of each completion under the reference, nats.
  """

  feature_XYD: Array
  reward_XY: Array
  length_XY: Array
  ref_logp_XY: Array


class BanditPairs(NamedTuple):
  """Labelled pairs; column 0 of `completion_B2` is the preferred completion."""

  prompt_B: Array
  completion_B2: Array


class Measures(NamedTuple):
  """Exact evaluation of a policy on some prompts.

  Attributes:
    reward: expected true reward, minus that of the reference.
    kl: KL(policy || reference), nats per completion.
    entropy: of the policy, nats per completion.
    length: expected tokens of a completion, minus those of the reference.
    accuracy: fraction of all pairs of completions whose log-ratios are in the order of
      their rewards.
  """

  reward: Array
  kl: Array
  entropy: Array
  length: Array
  accuracy: Array


def make(
  key: Array, prompts: int = 64, completions: int = 12, features: int = 16
) -> Bandit:
  """Draws a random task; reward is linear in the features, length independent of it."""
  keys = jax.random.split(key, 4)
  feature_XYD = jax.random.normal(keys[0], (prompts, completions, features))
  truth_D = jax.random.normal(keys[1], (features,)) / jnp.sqrt(features)
  length_XY = jax.random.randint(keys[2], (prompts, completions), 4, 33)
  ref_XY = jax.random.normal(keys[3], (prompts, completions))
  # One feature is the length, so that a policy can depend on it.
  centred_XY = (length_XY - 18.0) / 8.0
  feature_XYD = feature_XYD.at[..., -1].set(centred_XY)
  reward_XY = feature_XYD @ truth_D.at[-1].set(0.0)
  ref_logp_XY = jax.nn.log_softmax(ref_XY)
  return Bandit(feature_XYD, reward_XY, length_XY.astype(jnp.float32), ref_logp_XY)


def draw(
  task: Bandit,
  count: int,
  key: Array,
  *,
  temperature: float = 0.5,
  flipped: float | Array = 0.0,
  length_bias: float | Array = 0.0,
  prompts: int | None = None,
) -> BanditPairs:
  """Draws pairs of different completions, labelled by Bradley-Terry on the reward.

  Args:
    task: the bandit.
    count: number of pairs.
    key: PRNG key.
    temperature: temperature of the labels, in units of reward.
    flipped: probability that a label is flipped.
    length_bias: added to the logit of a label per token of length difference.
    prompts: number of prompts, from the first, to draw from; None: all.
  """
  keys = jax.random.split(key, 5)
  shape = task.reward_XY.shape
  prompt_B = jax.random.randint(keys[0], (count,), 0, prompts or shape[0])
  first_B = jax.random.randint(keys[1], (count,), 0, shape[1])
  other_B = (first_B + jax.random.randint(keys[2], (count,), 1, shape[1])) % shape[1]
  reward_gap_B = task.reward_XY[prompt_B, first_B] - task.reward_XY[prompt_B, other_B]
  length_gap_B = task.length_XY[prompt_B, first_B] - task.length_XY[prompt_B, other_B]
  wins_B = jax.random.bernoulli(
    keys[3], jax.nn.sigmoid(reward_gap_B / temperature + length_bias * length_gap_B)
  )
  wins_B = wins_B ^ jax.random.bernoulli(keys[4], flipped, (count,))
  both_B2 = jnp.stack([first_B, other_B], 1)
  return BanditPairs(prompt_B, jnp.where(wins_B[:, None], both_B2, both_B2[:, ::-1]))


def logp(task: Bandit, theta_D: Array) -> Array:
  """Log-probabilities of the policy ~ `ref * exp(features . theta)`, `[X, Y]`."""
  chex.assert_rank(theta_D, 1)
  return jax.nn.log_softmax(task.ref_logp_XY + task.feature_XYD @ theta_D)


def fit(
  objective: Objective,
  task: Bandit,
  pairs: BanditPairs,
  key: Array,
  *,
  steps: int = 300,
  learning_rate: float = 0.03,
) -> Array:
  """Trains with Adam from the reference on all pairs at once; returns theta, `[D]`.

  Args:
    objective: of layout PAIR, on sums over completions (no tokens).
    task: the bandit.
    pairs: from `draw`.
    key: PRNG key of the objective's random draws.
    steps: number of updates.
    learning_rate: of Adam.
  """
  at = (pairs.prompt_B[:, None], pairs.completion_B2)

  def view(theta_D: Array, _: Array) -> Scored:
    return scored.from_sequence_logps(
      logp(task, theta_D)[at], task.length_XY[at], task.ref_logp_XY[at]
    )

  start = jnp.zeros(task.feature_XYD.shape[-1])
  return descend(objective, view, start, key, steps=steps, learning_rate=learning_rate)


def descend(
  objective: Objective,
  view: Callable[[Params, Array], Scored],
  start: Params,
  key: Array,
  *,
  steps: int,
  learning_rate: float | Array,
) -> Params:
  """Minimises an objective with Adam; the arguments are those of `descent`."""
  chain = optax.adam(learning_rate)
  path = descent(objective, view, start, key, chain, steps=steps, points=1)
  return jax.tree.map(lambda x_P: x_P[0], path)


def descent(
  objective: Objective,
  view: Callable[[Params, Array], Scored],
  start: Params,
  key: Array,
  chain: optax.GradientTransformation,
  *,
  steps: int,
  points: int,
) -> Params:
  """Minimises an objective; the parameters along the way.

  Args:
    objective: any.
    view: (parameters, PRNG key of the step) -> the batch of the step under them; what
      it samples from them is a constant of the loss.
    start: parameters to start from.
    key: PRNG key of the batches and of the objective's random draws.
    chain: the optimiser.
    steps: number of updates; static.
    points: number of points, equally far apart, the last one at the end; static.

  Returns:
    The parameters with a leading axis `[P]` of the points.

  Raises:
    ValueError: steps is not a multiple of points.
  """
  if steps % points:
    raise ValueError(f"steps is {steps}; it must be a multiple of points, {points}")

  def loss(params: Params, state, key: Array):
    of_view, of_objective = jax.random.split(key)
    out = scored.evaluate(objective, view(params, of_view), state, of_objective)
    return out.loss, out.state

  def step(carry, key):
    params, moments, state = carry
    grad, state = jax.grad(loss, has_aux=True)(params, state, key)
    update, moments = chain.update(grad, moments)
    return (optax.apply_updates(params, update), moments, state), None

  def stretch(carry, key_S):
    carry, _ = jax.lax.scan(step, carry, key_S)
    return carry, carry[0]

  initial = (start, chain.init(start), objective.init())
  key_PS = jax.random.split(key, (points, steps // points))
  return jax.lax.scan(stretch, initial, key_PS)[1]


def measure(task: Bandit, theta_D: Array, first: int = 0) -> Measures:
  """Evaluates the policy exactly on the prompts from `first` on."""
  return measure_tilt(task, task.feature_XYD @ theta_D, first)


def measure_tilt(task: Bandit, tilt_XY: Array, first: int = 0) -> Measures:
  """Evaluates the policy ~ `ref * exp(tilt)` exactly on the prompts from `first` on.

  Args:
    task: the bandit.
    tilt_XY: log-ratio of policy and reference, up to a constant of each prompt, nats.
    first: prompt.
  """
  task = Bandit(*(x[first:] for x in task))
  tilt_XY = tilt_XY[first:]
  ref_XY, reward_XY = task.ref_logp_XY, task.reward_XY
  logp_XY = jax.nn.log_softmax(ref_XY + tilt_XY)
  gain_XY = jnp.exp(logp_XY) - jnp.exp(ref_XY)
  ratio_XYY = tilt_XY[:, :, None] - tilt_XY[:, None]
  reward_gap_XYY = reward_XY[:, :, None] - reward_XY[:, None]
  correct_XYY = (1 + jnp.sign(ratio_XYY * reward_gap_XYY)) / 2
  prompts, completions = reward_XY.shape
  distinct = 1 - jnp.eye(completions)
  return Measures(
    reward=(gain_XY * reward_XY).sum(1).mean(),
    kl=token_stats.kl(logp_XY, ref_XY).mean(),
    entropy=token_stats.entropy(logp_XY).mean(),
    length=(gain_XY * task.length_XY).sum(1).mean(),
    accuracy=(correct_XYY * distinct[None]).sum() / (distinct.sum() * prompts),
  )
