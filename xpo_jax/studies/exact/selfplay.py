"""Self-play in rounds: an objective on pairs of the round before's policy.

The games are those of `games`: win matrices that no reward explains. A round minimises
the expected loss over all pairs of completions, weighted as the policy that it starts
from, and its reference, would draw them. As `bandits`, each function is a cell.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from xpo_jax import objectives, scored
from xpo_jax.ops import preference_games
from xpo_jax.studies.exact import games, paths, programs
from xpo_jax.testing import bandit
from xpo_jax.types import Array

TEACHER = 10.0  # nats by which the teacher favours a completion that always wins


def rounds(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  count: int = 60,
  steps: int = 200,
  learning_rate: float = 0.02,
) -> dict[str, Array]:
  """Plays rounds of self-play; measures a round's policy and the average of all so far.

  Args:
    seed: of the game.
    objective: of layout PAIR: column 0 wins, or `reward_BK` holds win rates against
      the round's first policy.
    hparams: of the objective.
    count: rounds.
    steps: of Adam in a round.
    learning_rate: of Adam.

  Returns:
    step: rounds played, `paths.ends(count)`, and after each of them
    exploitability: max P(y > average policy) - 1/2 of the average of all rounds;
    last: the same of the last policy;
    gain: P(policy > policy of the round before) - 1/2;
    wins: P(policy > first policy) - 1/2;
    teacher: P(policy > teacher) - 1/2, the teacher being the first policy, tilted by
    `TEACHER` times the win rates against it;
    error: total variation to the exact step, policy' ~ policy exp(P(y > policy) /
    beta), from the policy of the round before.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _rounds(make, static, count, steps)
  win_VV, first_V = (jnp.asarray(x) for x in games.game(seed))
  return program(win_VV, first_V, traced, learning_rate)


@functools.cache
def _rounds(make, static, count, steps):
  @jax.jit
  def program(win_VV, first_V, traced, learning_rate):
    objective = programs.build(make, static, traced)
    V = len(first_V)
    pair_B2 = jnp.stack(jnp.meshgrid(jnp.arange(V), jnp.arange(V), indexing="ij"), -1)
    pair_B2 = pair_B2.reshape(-1, 2)
    key = jax.random.key(0)  # nothing is drawn
    tilted_V = first_V + TEACHER * preference_games.wins_against(win_VV, first_V)
    teacher_V = jax.nn.softmax(tilted_V)

    def play(logp_V, _):
      rate_V = preference_games.wins_against(win_VV, logp_V)
      drawn_B = jnp.exp(logp_V)[pair_B2].prod(1)
      win_B = win_VV[pair_B2[:, 0], pair_B2[:, 1]]

      def view(change_V, _):
        new_V = jax.nn.log_softmax(logp_V + change_V)
        return scored.from_sequence_logps(
          new_V[pair_B2],
          jnp.ones(pair_B2.shape),
          logp_V[pair_B2],
          reward_BK=rate_V[pair_B2],
          # Both orders of a pair are here; that in which column 0 wins weighs P.
          weight_B=2 * drawn_B * win_B,
        )

      change_V = bandit.descend(
        objective,
        view,
        jnp.zeros(V),
        key,
        steps=steps,
        learning_rate=learning_rate,
      )
      new_V = jax.nn.log_softmax(logp_V + change_V)
      return new_V, new_V

    _, policy_RV = jax.lax.scan(play, first_V, length=count)
    before_RV = jnp.concatenate([first_V[None], policy_RV[:-1]])
    p_RV = jnp.exp(policy_RV)
    done_R = 1.0 + jnp.arange(count)
    average_RV = jnp.cumsum(p_RV, 0) / done_R[:, None]
    exploited = jax.vmap(lambda x: preference_games.exploitability(win_VV, x))
    exact_RV = jax.vmap(
      lambda x: preference_games.sppo_step(x, win_VV, 1 / traced["beta"])
    )(before_RV)
    path = {
      "step": done_R,
      "exploitability": exploited(jnp.log(average_RV)),
      "last": exploited(policy_RV),
      "gain": jnp.einsum("rv,vw,rw->r", p_RV, win_VV, jnp.exp(before_RV)) - 0.5,
      "wins": p_RV @ win_VV @ jnp.exp(first_V) - 0.5,
      "teacher": p_RV @ win_VV @ teacher_V - 0.5,
      "error": jnp.abs(p_RV - jnp.exp(exact_RV)).sum(1) / 2,
    }
    place = jnp.array(paths.ends(count)) - 1
    return jax.tree.map(lambda x_R: x_R[place], path)

  return program
