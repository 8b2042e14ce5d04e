"""Games of preferences: expected updates over all completions, the last iterate.

Preferences are a win matrix that no reward explains, `ops.preference_games`; what an
objective learns from are all completions, weighted by their probability.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax import objectives, scored
from xpo_jax.ops import preference_games, token_stats
from xpo_jax.studies.exact import programs
from xpo_jax.types import Array

ACTIONS = 12


def game(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """A random win matrix, a quarter of whose triples are cycles, and a reference."""
  rng = np.random.default_rng(seed)
  logit_VV = rng.normal(0, 1.5, (ACTIONS, ACTIONS))
  win_VV = 1 / (1 + np.exp(-(logit_VV - logit_VV.T)))
  ref_V = rng.normal(size=ACTIONS)
  return win_VV, ref_V - np.log(np.exp(ref_V).sum())


def learn(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  opponent: float,
  reward: Literal["wins", "bradley_terry"] = "wins",
  iterations: int = 4000,
  learning_rate: float = 0.5,
) -> dict[str, Array]:
  """Follows the expected natural gradient of an objective; measures the last policy.

  Args:
    seed: of the game.
    objective: of layout SAMPLED.
    hparams: of the objective.
    opponent: share of the reference in the opponent, a geometric mixture.
    reward: "wins", the probability of beating the opponent; "bradley_terry", a reward
      fitted to the reference's own pairs.
    iterations: updates.
    learning_rate: of natural gradient descent.

  Returns:
    exploitability: max P(y > policy) - 1/2 of the last policy.
    gap: its duality gap in the game regularised by the objective's beta.
    kl: to the reference, nats.
    change: total variation between the last policy and that of 10 updates before.
  """
  static, traced = programs.split(hparams)
  program = _learn(objectives.get(objective), static, reward, iterations)
  win_VV, ref_V = (jnp.asarray(x) for x in game(seed))
  return program(win_VV, ref_V, traced, opponent, learning_rate)


@functools.cache
def _learn(make, static, reward, iterations):
  @jax.jit
  def program(win_VV, ref_V, traced, opponent, learning_rate):
    objective = programs.build(make, static, traced)
    fitted_V = preference_games.bradley_terry(win_VV, ref_V)

    def update(logits_V, _):
      logp_V = jax.nn.log_softmax(logits_V)
      old_V = logp_V
      mix_V = preference_games.mixture(logp_V, ref_V, opponent)
      wins_V = preference_games.wins_against(win_VV, mix_V)
      gain_V = wins_V if reward == "wins" else fitted_V

      def loss(logp_V):
        s = scored.from_token_logps(
          logp_V[:, None, None],
          jnp.ones((ACTIONS, 1, 1)),
          ref_V[:, None, None],
          old_logp_BKT=old_V[:, None, None],
          reward_BK=gain_V[:, None],
        )
        return scored.evaluate(objective, s, objective.init()).loss

      # In the log-probabilities, each completion once: the natural gradient of a
      # softmax, up to a constant.
      gradient_V = ACTIONS * jax.grad(loss)(logp_V)
      return logp_V - learning_rate * gradient_V, logp_V

    logits_V, path_TV = jax.lax.scan(update, ref_V, length=iterations)
    logp_V = jax.nn.log_softmax(logits_V)
    change = jnp.abs(jnp.exp(logp_V) - jnp.exp(path_TV[-10])).sum() / 2
    beta = traced["beta"]
    return {
      "exploitability": preference_games.exploitability(win_VV, logp_V),
      "gap": preference_games.regularised_gap(win_VV, logp_V, ref_V, beta),
      "kl": token_stats.kl(logp_V, ref_V),
      "change": change,
    }

  return program
