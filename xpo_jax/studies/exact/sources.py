"""Where pairs come from: people's, of another policy's samples, or a ranker's, of the
reference's own. As `bandits`, each function is a cell."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import bandits, paths, programs
from xpo_jax.testing import bandit
from xpo_jax.testing.bandit import Bandit, BanditPairs
from xpo_jax.types import Array, Objective

PROMPTS = 16
Source = Literal["direct", "sample-rank"]


def ranker(objective: Objective, task: Bandit, drawn: BanditPairs, key: Array) -> Array:
  """Fits a linear reward to pairs, `[X, Y]`.

  Args:
    objective: of preference models, layout PAIR.
    task: the bandit, all of whose features the reward sees.
    drawn: labelled pairs.
    key: PRNG key.
  """
  feature_B2D = task.feature_XYD[drawn.prompt_B[:, None], drawn.completion_B2]

  def view(theta, _):
    head_B2T = (feature_B2D @ theta)[..., None]
    return scored.from_token_logps(
      None, jnp.ones_like(head_B2T), reward_head_BKT=head_B2T
    )

  start = jnp.zeros(task.feature_XYD.shape[-1])
  theta = bandit.descend(objective, view, start, key, steps=300, learning_rate=0.05)
  return task.feature_XYD @ theta


def calibrate(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  source: Source,
  ranking: Mapping[str, Any],
  candidates: int = 8,
  count: int = 200,
  steps: int = 300,
  learning_rate: float = 0.03,
) -> dict[str, Array]:
  """Trains on people's pairs, or on as many that a ranker fitted to them orders.

  People compare samples of another policy. The ranker, linear in the features, orders
  samples of the reference, in first-round pairs of `candidates` a prompt. The policy is
  a table: what it learns of a completion says nothing of another.

  Args:
    seed: of the task and the pairs.
    objective: of layout PAIR, on sums; or DEMO, on the better one.
    hparams: of the objective.
    source: "direct", people's pairs; "sample-rank", the ranker's.
    ranking: {"objective": its name, of preference models, "hparams": names only}.
    candidates: samples of a prompt; even.
    count: pairs; a multiple of half of the candidates.
    steps: of Adam.
    learning_rate: of Adam.

  Returns:
    `bandits.measures` along training, see `paths.descend`; agreement: fraction of the
    pairs whose better one has more true reward.

  Raises:
    ValueError: candidates do not make whole pairs, or pairs not whole prompts.
  """
  if candidates % 2 or count % (candidates // 2):
    raise ValueError(
      f"candidates is {candidates} and count {count}; candidates must be even and "
      "count a multiple of half of them"
    )
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  ranks = (objectives.get(ranking["objective"]), tuple(ranking["hparams"].items()))
  program = _calibrate(make, static, ranks, source, candidates, count, steps)
  return program(jax.random.key(seed), traced, learning_rate)


@functools.cache
def _calibrate(make, static, ranks, source, candidates, count, steps):
  @jax.jit
  def program(key, traced, learning_rate):
    of_task, of_pairs, of_training = jax.random.split(key, 3)
    task = bandit.make(of_task, PROMPTS, bandits.COMPLETIONS, bandits.FEATURES)
    keys = jax.random.split(of_pairs, 6)
    shape = task.reward_XY.shape
    writer_XY = jax.nn.log_softmax(jax.random.normal(keys[0], shape))
    prompt_B = jax.random.randint(keys[1], (count,), 0, PROMPTS)
    both_2B = jax.random.categorical(keys[2], writer_XY[prompt_B], shape=(2, count))
    gap_B = -jnp.diff(task.reward_XY[prompt_B, both_2B], axis=0)[0]
    chance_B = jax.nn.sigmoid(gap_B / bandits.DATA["temperature"])
    drawn = _ordered(prompt_B, both_2B, jax.random.bernoulli(keys[3], chance_B))
    if source == "sample-rank":
      reward_XY = ranker(programs.build(*ranks, {}), task, drawn, keys[4])
      prompt_B = jnp.repeat(prompt_B[:: candidates // 2], candidates // 2)
      both_2B = jax.random.categorical(
        keys[5], task.ref_logp_XY[prompt_B], shape=(2, count)
      )
      gap_B = -jnp.diff(reward_XY[prompt_B, both_2B], axis=0)[0]
      drawn = _ordered(prompt_B, both_2B, gap_B > 0)
    at = (drawn.prompt_B[:, None], drawn.completion_B2)
    weight_B = (drawn.completion_B2[:, 0] != drawn.completion_B2[:, 1]) * 1.0
    table = bandits.with_table(task)

    def view(theta, _):
      return scored.from_sequence_logps(
        bandit.logp(table, theta)[at],
        task.length_XY[at],
        task.ref_logp_XY[at],
        weight_B=weight_B,
      )

    path = paths.descend(
      programs.build(make, static, traced),
      view,
      jnp.zeros(task.reward_XY.size),
      of_training,
      lambda theta: bandits.measures(table, theta, 0),
      optax.adam(learning_rate),
      steps=steps,
    )
    reward_B2 = task.reward_XY[at]
    right = ((reward_B2[:, 0] > reward_B2[:, 1]) * weight_B).sum() / weight_B.sum()
    return path | {"agreement": jnp.full(path["reward"].shape, right)}

  return program


def _ordered(prompt_B: Array, both_2B: Array, wins_B: Array) -> BanditPairs:
  return BanditPairs(prompt_B, jnp.where(wins_B[:, None], both_2B.T, both_2B[::-1].T))
