"""Mixtures of objectives."""

import chex
import jax
import pytest

from xpo_jax import objectives, scored
from xpo_jax.testing import toy
from xpo_jax.types import nothing_shared


def test_loss_is_the_weighted_sum_of_divided_terms():
  s = toy.scored(K=2)
  parts = (objectives.dpo(), objectives.simpo(), objectives.sft())
  out = scored.evaluate(objectives.mixture((0.8, 0.2, 1.5), parts), s)
  alone = [float(scored.evaluate(part, s).loss) for part in parts]
  expected = 0.8 * alone[0] + 0.2 * alone[1] + 1.5 * alone[2]
  assert out.loss == pytest.approx(expected, rel=1e-6)
  assert list(out.terms) == ["dpo/dpo", "simpo/simpo", "sft/sft"]
  assert out.terms["sft/sft"] == pytest.approx(1.5 * alone[2], rel=1e-6)


def test_orpo_is_a_mixture():
  s = toy.scored(K=2)
  parts = (objectives.sft(), objectives.odds_ratio(weight=1.0))
  expected = scored.evaluate(objectives.mixture((1.0, 0.3), parts), s).loss
  actual = scored.evaluate(objectives.orpo(weight=0.3), s).loss
  assert actual == pytest.approx(float(expected), rel=1e-6)


def test_stats_columns_and_layout_are_united():
  o = objectives.mixture((1.0, 1.0), (objectives.sft(), objectives.kto()))
  assert o.stats == objectives.kto().stats
  assert o.columns == {"desirable_BK"}
  assert o.layout is objectives.kto().layout


def test_state_is_composed_and_stateless_parts_add_none():
  coupled = objectives.mixture((1.0, 1.0), (objectives.sft(), objectives.beta_dpo()))
  s, key = toy.scored(K=2), jax.random.key(0)
  out = scored.evaluate(coupled, s, coupled.init(), key)
  own = objectives.beta_dpo()
  aux, state = own.prepare(s, own.init(), jax.random.fold_in(key, 1))
  chex.assert_trees_all_close(out.state[1], state)
  assert out.metrics["beta"] == pytest.approx(float(aux.shared))
  plain = objectives.mixture((1.0, 1.0), (objectives.sft(), objectives.dpo()))
  assert plain.prepare is nothing_shared


def test_one_objective_twice_gets_numbered_terms():
  parts = (objectives.dpo(beta=0.1), objectives.dpo(beta=1.0))
  out = scored.evaluate(objectives.mixture((0.5, 0.5), parts), toy.scored(K=2))
  assert list(out.terms) == ["dpo_0/dpo", "dpo_1/dpo"]
  assert {"reward_margin", "dpo_1/reward_margin"} <= set(out.metrics)


def test_bad_mixtures_are_refused():
  dpo, kto = objectives.dpo(), objectives.kto()
  with pytest.raises(ValueError, match=r"1 weights for 2 objectives"):
    objectives.mixture((1.0,), (dpo, kto))
  with pytest.raises(ValueError, match=r"dpo PAIR, kto RATED_MISMATCHED"):
    objectives.mixture((1.0, 1.0), (dpo, kto))
  with pytest.raises(ValueError, match=r"weight=nan.*finite"):
    objectives.mixture((float("nan"),), (dpo,))


def test_reward_kind_is_the_most_restrictive():
  dpo, sppo, ipo_md = objectives.dpo(), objectives.sppo(), objectives.ipo_md()
  assert objectives.mixture((1.0, 1.0), (dpo, sppo)).reward_kind == "win_rates"
  assert (
    objectives.mixture((1.0, 1.0, 1.0), (ipo_md, dpo, sppo)).reward_kind == "pairwise"
  )


def test_column0_source_is_the_one_that_is_not_sample():
  bonus, greedy = objectives.exploration(), objectives.remax()
  pairs = objectives.best_against_worst(objectives.ipo())
  assert objectives.mixture((1.0, 1.0), (pairs, bonus)).column0_source == "reference"
  assert objectives.mixture((1.0,), (pairs,)).column0_source == "sample"
  with pytest.raises(ValueError, match="as column 0: remax greedy, exploration ref"):
    objectives.mixture((1.0, 1.0), (greedy, bonus))


def test_share_of_a_teacher_is_the_one_that_is_not_0():
  taught = objectives.minillm(teacher_share=0.2)
  plain = objectives.on_policy_distillation()
  assert objectives.mixture((1, 0.1), (taught, plain)).teacher_share == 0.2
  with pytest.raises(ValueError, match=r"minillm 0\.2, minillm 0\.3"):
    objectives.mixture((1, 1), (taught, objectives.minillm(teacher_share=0.3)))
