"""Online DPO, and any pairwise objective on samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import pairing
from xpo_jax.testing import toy
from xpo_jax.types import Aux


def record(reward, present=None):
  logp = np.array([[-1.0, -2.0, -5.0]] * len(reward))
  one = np.ones_like(logp)
  return scored.from_sequence_logps(
    logp, one, 0 * logp, reward_BK=reward, present_BK=present
  )


def test_best_is_chosen_and_worst_rejected():
  # best is column 1, worst column 0: the margin is 0.5 (-2 + 1)
  out = scored.evaluate(objectives.online_dpo(beta=0.5), record([[0.1, 0.9, 0.5]]))
  assert out.loss == pytest.approx(np.log1p(np.exp(0.5)))
  assert out.metrics["reward_margin"] == pytest.approx(-0.5)
  assert out.metrics["logp_chosen"] == pytest.approx(-2)
  assert out.metrics["reward"] == pytest.approx(0.5)


def test_absent_column_is_never_chosen():
  s = record([[0.1, 9.0, 0.5]], [[1, 0, 1]])
  out = scored.evaluate(objectives.online_dpo(beta=0.5), s)
  assert out.metrics["logp_chosen"] == pytest.approx(-5)


@pytest.mark.parametrize(
  ("reward", "present"), [([0.3] * 3, [1, 1, 1]), ([0.1, 0.9, 0.5], [0, 1, 0])]
)
def test_tie_or_single_completion_is_no_pair(reward, present):
  """It adds nothing, and does not weigh in the mean either."""
  o = objectives.online_dpo()
  assert scored.evaluate(o, record([reward], [present])).loss == 0
  pair, alone = [0.1, 0.9, 0.5], [1, 1, 1]
  beside = scored.evaluate(o, record([pair, reward], [alone, present])).loss
  assert beside == pytest.approx(float(scored.evaluate(o, record([pair])).loss))


@pytest.mark.parametrize("name", ["simpo", "orpo", "beta_dpo"])
def test_any_pairwise_objective_on_samples(name):
  """On two samples, the better one first, it is the pairwise objective itself."""
  s, pairwise = toy.scored(K=2), objectives.build(name)
  ordered = s.replace(reward_BK=jnp.array([[1.0, 0.0]] * 8))
  start = (pairwise.init(), jax.random.key(0))
  expected = scored.evaluate(pairwise, s, *start)
  online = objectives.best_against_worst(pairwise)
  actual = scored.evaluate(online, ordered, *start)
  assert actual.loss == pytest.approx(float(expected.loss))
  chex.assert_trees_all_close(actual.state, expected.state)


def test_another_pairing_rule_can_be_substituted():
  o, s = objectives.online_dpo(), record([[0.1, 0.9, 0.5]])
  pairs = pairing.first_two(s.reward_BK, s.present_BK)
  term = o.loss(s, Aux(rows=(pairs, ()))).terms["online_dpo"]
  assert term.value == pytest.approx(np.log1p(np.exp(0.1)))


def test_only_pairwise_objectives_take_pairs():
  with pytest.raises(ValueError, match="needs an objective of layout PAIR, sft is of"):
    objectives.best_against_worst(objectives.sft())
