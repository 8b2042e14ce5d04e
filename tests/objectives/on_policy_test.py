"""`Objective.on_policy` agrees with what the loss reads of the policy that sampled."""

import jax
import jax.numpy as jnp
import pytest

from xpo_jax import objectives
from xpo_jax.testing import toy
from xpo_jax.types import Layout, Objective

SAMPLED = [n for n in objectives.NAMES if objectives.build(n).layout is Layout.SAMPLED]
# Learn from selected or compared completions, or a teacher's probabilities on them,
# whoever sampled them.
FROM_LABELS = {"raft", "online_dpo", "exploratory_dpo", "gkd"}


def _has_ratio(objective: Objective) -> bool:
  """Whether, advantages being given, the gradient depends on `old_logp_BKT`."""
  record = toy.scored_for(objective)
  aux, _ = objective.prepare(record, objective.init(), jax.random.key(0))

  def slope(old_logp_BKT):
    def loss(logp_BKT):
      changed = record.replace(logp_BKT=logp_BKT, old_logp_BKT=old_logp_BKT)
      return sum(x.value for x in objective.loss(changed, aux).terms.values())

    return jax.jit(jax.grad(loss))(record.logp_BKT)

  return bool(jnp.any(slope(record.old_logp_BKT) != slope(record.logp_BKT)))


@pytest.mark.parametrize("name", SAMPLED)
def test_objective_without_a_ratio_is_on_policy(name):
  objective = objectives.build(name)
  if _has_ratio(objective):
    assert not objective.on_policy
  else:
    assert objective.on_policy == (name not in FROM_LABELS)


def test_mixture_is_on_policy_if_a_part_is():
  ppo, rloo = objectives.build("dr_grpo"), objectives.build("rloo")
  assert objectives.mixture((1.0, 1.0), (ppo, rloo)).on_policy
  assert not objectives.mixture((1.0, 1.0), (ppo, ppo)).on_policy
