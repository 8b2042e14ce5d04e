"""Rounds on a judge's pairs: heads, the judge's freshness, the quality of its pairs."""

import jax
import numpy as np
import pytest

from xpo_jax.studies.exact import self_rewarding

PEOPLE = {
  "imitation": {"objective": "nll", "hparams": {"reduction": "sequence_sum"}},
  "comparison": {"objective": "bradley_terry", "hparams": {}},
}


def _iterate(judge="own", **settings):
  given = {"objective": "dpo", "hparams": {"beta": 0.1}} | PEOPLE
  return self_rewarding.iterate(0, judge=judge, **{**given, **settings})


def test_heads_are_unit_vectors_at_their_cosine():
  policy_H, judge_H = jax.jit(self_rewarding.heads)(jax.random.key(0))
  assert policy_H @ policy_H == pytest.approx(1, abs=1e-5)
  assert judge_H @ judge_H == pytest.approx(1, abs=1e-5)
  assert policy_H @ judge_H == pytest.approx(self_rewarding.COSINE, abs=1e-5)


def test_the_first_round_does_not_depend_on_whose_judge_it_is():
  own, first = _iterate(), _iterate("first")
  for name in ("reward", "accuracy"):
    np.testing.assert_allclose(own[name][:2], first[name][:2], rtol=1e-3)
    assert own[name][2] != first[name][2]


def test_scores_of_noise_teach_no_reward():
  clear, noisy = (_iterate(noise=noise)["reward"] for noise in (0.0, 1000.0))
  assert clear[1] - clear[0] > noisy[1] - noisy[0]
  assert noisy[1] - noisy[0] < 0.1


def test_no_training_leaves_model_1():
  found = _iterate(learning_rate=0.0)
  np.testing.assert_allclose(found["reward"], found["reward"][0], rtol=1e-5)
  assert found["accuracy"][0] > 0.6
