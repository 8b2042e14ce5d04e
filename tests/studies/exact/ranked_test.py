"""Lists of samples: their order, their best, and layouts that agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.studies.exact import bandits, ranked


def test_lists_are_different_completions_in_the_order_of_their_scores():
  task = bandits.world(jax.random.key(0), False)
  prompt_B = jnp.arange(20)
  sample_BK, score_BK = ranked.draw(jax.random.key(1), task, prompt_B, 4, 0.0)
  assert all(len(set(row.tolist())) == 4 for row in sample_BK)
  assert (jnp.diff(score_BK, axis=1) <= 0).all()
  np.testing.assert_allclose(score_BK, task.reward_XY[prompt_B[:, None], sample_BK])


def test_first_samples_are_the_references():
  """A list of one is a sample: its law is the reference's."""
  task = bandits.world(jax.random.key(0), False)
  sample_B1, _ = ranked.draw(jax.random.key(1), task, jnp.zeros(20_000, int), 1, 1.0)
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
  found = ranked.train(
    0,
    objective="nll",
    hparams={"reduction": "sequence_sum"},
    size=bandits.COMPLETIONS,
    noise=0.0,
    count=20,
    steps=2,
  )
  task = bandits.world(jax.random.split(jax.random.key(0), 3)[0], False)
  reward_XY = task.reward_XY[ranked.SEEN :]
  reference = (jnp.exp(task.ref_logp_XY[ranked.SEEN :]) * reward_XY).sum(1).mean()
  expected = float(reward_XY.max(1).mean() - reference)
  assert found["data"][-1] == pytest.approx(expected, abs=1e-4)


def test_sft_on_any_learns_no_reward():
  def reward(demonstration):
    found = ranked.train(
      0,
      objective="nll",
      hparams={"reduction": "sequence_sum"},
      size=4,
      demonstration=demonstration,
      steps=60,
    )
    return float(found["reward"][-1])

  assert abs(reward("any")) < 0.2 < reward("best")
