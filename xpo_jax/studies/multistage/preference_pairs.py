"""Pairs chosen among a policy's samples by rejection sampling and tournaments."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.config.data import Prompts
from xpo_jax.data import records
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.ops import pairing, preference_games, selection
from xpo_jax.studies.multistage import samples


def ranked(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  max_completion_tokens: int,
  *,
  candidates: int,
  kept: int,
  rejection_beta: float | None,
  temperature: float = 0.25,
  ranking: Literal["first_round", "tournament", "best_worst"] = "first_round",
  sampling_temperature: float = 1.0,
  top_k: int | None = None,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Pair]:
  """Pairs of a ranking among samples (RSO, SLiC sample-rank).

  Args:
    policy: directory of the policy that writes.
    prompts: what for.
    reward: ranks, `Scorer`.
    max_completion_tokens: longest completion.
    candidates: samples of each prompt.
    kept: of these are ranked.
    rejection_beta: accept by statistical rejection sampling at this temperature, in
      the ranking's logits (Liu et al. 2023, arXiv:2309.06657); None: the first samples.
    temperature: reward that is one logit of the ranking.
    ranking: which of the kept make pairs: those that `pairing.first_round` or
      `pairing.tournament` compares, or the best and the worst.
    sampling_temperature, top_k: of the samples.
    num_prompts: the first so many prompts.
    seed: of samples and acceptance.
  """
  sampled = samples.sample(
    policy,
    samples.texts_of(prompts, 0, num_prompts),
    completions=candidates,
    max_completion_tokens=max_completion_tokens,
    seed=seed,
    temperature=sampling_temperature,
    top_k=top_k,
  )
  reward_BK = samples.rewards(reward, sampled)
  logit_BK = jnp.asarray(reward_BK / temperature)
  if rejection_beta is None:
    index_BJ = jnp.broadcast_to(jnp.arange(kept)[None], (len(logit_BK), kept))
  else:
    index_BJ = _accepted(logit_BK, kept, rejection_beta, seed)
  logit_BJ = jnp.take_along_axis(logit_BK, index_BJ, 1)
  duels = _RANKINGS[ranking](logit_BJ)
  winner_BJ, loser_BJ = (
    np.asarray(jnp.take_along_axis(index_BJ, x_BJ, 1))
    for x_BJ in (duels.winner_BJ, duels.loser_BJ)
  )
  keep_BJ = np.asarray(duels.keep_BJ)
  return samples.to_pairs(sampled, reward_BK, winner_BJ, loser_BJ, keep_BJ)


def _first_round(logit_BJ: jax.Array) -> pairing.Comparisons:
  wins_BJJ = preference_games.from_rewards(logit_BJ)
  return pairing.first_round(wins_BJJ, jnp.ones_like(logit_BJ))


def _tournament(logit_BJ: jax.Array) -> pairing.Comparisons:
  wins_BJJ = preference_games.from_rewards(logit_BJ)
  return pairing.tournament(wins_BJJ, jnp.ones_like(logit_BJ))


def _best_worst(logit_BJ: jax.Array) -> pairing.Comparisons:
  pairs = pairing.best_worst(logit_BJ, jnp.ones_like(logit_BJ))
  columns = (pairs.chosen_B, pairs.rejected_B, pairs.keep_B)
  return pairing.Comparisons(*(x_B[:, None] for x_B in columns))


_RANKINGS = {
  "first_round": _first_round,
  "tournament": _tournament,
  "best_worst": _best_worst,
}


def _accepted(logit_BK: jax.Array, kept: int, beta: float, seed: int) -> jax.Array:
  key = jax.random.fold_in(jax.random.key(seed), 5)

  def accept(logit_K, row):
    own = jax.random.fold_in(key, row)
    return selection.rejection_sample(logit_K, kept, beta, own).index_J

  return jax.jit(jax.vmap(accept))(logit_BK, jnp.arange(len(logit_BK)))
