"""Lists of samples: their order, their best, and layouts that agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.studies.exact import bandits, ranked

ALL = bandits.COMPLETIONS
_world = jax.jit(functools.partial(bandits.world, tabular=False))
_draw = jax.jit(ranked.draw, static_argnames="size")


def _sft(**settings):
  """On one of all completions of a prompt."""
  hparams = {"reduction": "sequence_sum"}
  return ranked.train(
    0, objective="nll", hparams=hparams, size=ALL, steps=60, **settings
  )


def test_lists_are_different_completions_in_the_order_of_their_scores():
  task = _world(jax.random.key(0))
  prompt_B = jnp.arange(20)
  sample_BK, score_BK = _draw(jax.random.key(1), task, prompt_B, size=4, noise=0.0)
  assert all(len(set(row.tolist())) == 4 for row in sample_BK)
  assert (jnp.diff(score_BK, axis=1) <= 0).all()
  np.testing.assert_allclose(score_BK, task.reward_XY[prompt_B[:, None], sample_BK])


def test_first_samples_are_the_references():
  """A list of one is a sample: its law is the reference's."""
  task = _world(jax.random.key(0))
  prompt_B = jnp.zeros(20_000, int)
  sample_B1, _ = _draw(jax.random.key(1), task, prompt_B, size=1, noise=1.0)
  law_Y = np.bincount(sample_B1[:, 0], minlength=bandits.COMPLETIONS) / 20_000
  np.testing.assert_allclose(law_Y, jnp.exp(task.ref_logp_XY[0]), atol=0.015)


def test_lists_of_two_are_pairs_and_data_is_their_best():
  given = {"hparams": {"beta": 0.3}, "count": 100, "steps": 20}
  pair, ranking = (
    ranked.train(0, objective=name, size=2, **given)
    for name in ("dpo", "plackett_luce")
  )
  for name in pair:
    np.testing.assert_allclose(pair[name], ranking[name], rtol=1e-3, atol=1e-5)


def test_best_of_all_completions_without_noise_is_the_most_there_is():
  found = _sft(noise=0.0)
  task = _world(jax.random.split(jax.random.key(0), 3)[0])
  reward_XY = task.reward_XY[ranked.SEEN :]
  reference = (jnp.exp(task.ref_logp_XY[ranked.SEEN :]) * reward_XY).sum(1).mean()
  expected = float(reward_XY.max(1).mean() - reference)
  assert found["data"][-1] == pytest.approx(expected, abs=1e-4)


def test_sft_on_any_learns_no_reward():
  of_any, of_best = (
    float(_sft(demonstration=which)["reward"][-1]) for which in ("any", "best")
  )
  assert abs(of_any) < 0.2 < of_best
