"""A policy trained on every pair is the optimum of the token MDP."""

import pytest

from xpo_jax.studies.exact import trees


def test_population_of_pairs_has_the_soft_bellman_optimum():
  found = trees.identity(
    0, objective="token_dpo", hparams={"beta": 0.5}, learning_rate=0.03
  )
  assert found["error"] < 0.02 * found["scale"]
  assert found["credit"] == pytest.approx(1, abs=1e-3)
  assert found["beam3"] <= found["beam1"] + 1e-6


def test_sequential_kl_is_smaller_with_its_term():
  given = {"count": 300, "steps": 60}
  dpo = trees.pairs(0, objective="token_dpo", hparams={"beta": 0.1}, **given)
  tdpo = trees.pairs(0, objective="tdpo2", hparams={"beta": 0.1, "alpha": 0.5}, **given)
  assert tdpo["seq_kl_rejected"] < dpo["seq_kl_rejected"]
  assert dpo["root_kl"] ** 2 == pytest.approx(float(dpo["kl"]), rel=1e-5)
