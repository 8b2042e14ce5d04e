"""Completions of varying length: enumeration, laws of labels, limits of training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax import objectives
from xpo_jax.studies.exact import sentences

SFT = {"objective": "nll", "hparams": {"reduction": "sequence_sum"}, "steps": 80}
DATA = {"count": 2000, "learning_rate": 0.1}
_world = jax.jit(sentences.world)  # one compilation for every seed and habit


def test_every_completion_is_enumerated_once():
  task = _world(jax.random.key(0))
  tokens = sentences.VOCABULARY - 1
  expected = sum(tokens**n for n in range(sentences.DEPTH + 1))
  assert len(task.path_NT) == expected
  assert len(np.unique(task.path_NT, axis=0)) == expected
  assert jnp.exp(task.logp_N(task.ref_SV)).sum() == pytest.approx(1, abs=1e-5)


def test_a_batch_holds_the_log_probabilities_of_its_completions():
  task = _world(jax.random.key(1))
  at_BK = jnp.array([[0, 5], [70, 300]])
  logits_SV = task.ref_SV + 3.0  # a constant has no effect
  scored = jax.jit(functools.partial(task.scored, objectives.dpo()))
  s = scored(logits_SV, task.ref_SV, at_BK)
  for x_BKT in (s.logp_BKT, s.ref_logp_BKT):
    np.testing.assert_allclose(
      x_BKT.sum(-1), task.logp_N(task.ref_SV)[at_BK], atol=1e-5
    )
  np.testing.assert_array_equal(s.length_BK, task.length_N[at_BK])


def test_repetition_counts_words_but_not_the_end():
  path = jnp.array([[1, 1, 2, 2, 0], [1, 2, 1, 2, 1], [1, 0, 0, 0, 0]])
  mask = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
  np.testing.assert_allclose(sentences.repeated(path, mask), [0.4, 0, 0])

  @jax.jit
  def rate(habit):
    task = sentences.world(jax.random.key(0), habit)
    return sentences.measures(task, task.ref_SV)["repetition"]

  assert rate(2.0) > 2 * rate(0.0) > 0


def test_laws_of_chosen_and_rejected():
  rng = np.random.default_rng(0)
  p, reward = rng.dirichlet(np.ones(5)), rng.normal(size=5)
  chosen, rejected = np.zeros(5), np.zeros(5)
  for i in range(5):
    for j in range(5):
      win = 1 / (1 + np.exp(-(reward[i] - reward[j]) / sentences.TEMPERATURE))
      chosen[i] += p[i] * p[j] * win
      chosen[j] += p[i] * p[j] * (1 - win)
      rejected[j] += p[i] * p[j] * win
      rejected[i] += p[i] * p[j] * (1 - win)
  found = sentences.labelled(jnp.log(p), jnp.asarray(reward))
  np.testing.assert_allclose(found, [chosen, rejected], atol=1e-6)


def test_simpo_on_sums_is_cpo_without_its_likelihood():
  given = {"count": 50, "steps": 20}
  simpo, other, averaged = (
    sentences.pairs(0, objective=name, hparams=hparams, per_token=own, **given)
    for name, hparams, own in (
      ("simpo", {"beta": 0.5, "gamma": 0.0}, False),
      ("cpo", {"beta": 0.5, "weight": 0.0}, True),
      ("simpo", {"beta": 0.5, "gamma": 0.0}, True),
    )
  )
  for name in simpo:
    np.testing.assert_allclose(simpo[name], other[name], rtol=1e-3, atol=1e-5)
  assert abs(simpo["length"][-1] - averaged["length"][-1]) > 0.01


def test_sft_ends_at_the_law_of_the_chosen():
  """The tree holds any law, so that its reward becomes the data's."""
  found = sentences.domain(0, first=SFT, **DATA)
  keys = jax.random.split(jax.random.key(0), 4)
  task = _world(keys[0])
  writer_N = task.logp_N(_world(keys[1]).ref_SV)
  chosen_N, _ = sentences.labelled(writer_N, task.reward_N)
  chosen_N -= jnp.exp(2 * writer_N)  # pairs of one completion twice are left out
  chosen_N /= chosen_N.sum()
  gain = (chosen_N - jnp.exp(writer_N)) @ task.reward_N
  assert found["reward"] == pytest.approx(float(gain), abs=0.06)


def test_second_stage_starts_from_the_first():
  idle = {"objective": "dpo", "hparams": {"beta": 0.1}, "steps": 0}
  one, two = (
    sentences.domain(0, first=SFT, second=second, **DATA) for second in (None, idle)
  )
  assert one["chosen"] == pytest.approx(float(two["chosen"]), abs=1e-6)
