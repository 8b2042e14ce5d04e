"""Sampling of rows, rejection sampling, RAFT and sDPO selection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import selection

selection = compiled.module(selection, but=["sdpo_stage"])

ROWS = np.arange(3)


@jax.jit
def many(log_weight, keep, weight):
  keys = jax.random.split(jax.random.key(0), 2000)

  def one(key):
    return selection.without_replacement(log_weight, keep, weight, ROWS, key)

  return jax.vmap(one)(keys)


def draws(log_weight, keep, weight=(1.0, 1.0, 1.0)):
  return np.asarray(many(jnp.asarray(log_weight), keep, jnp.asarray(weight)))


def test_first_draw_follows_the_weights():
  p = np.array([0.5, 0.3, 0.2])
  share = draws(np.log(p), 1 / 3).mean(0)
  np.testing.assert_allclose(share, p, atol=4 * np.sqrt(0.25 / 2000))


def test_two_draws_without_replacement_follow_the_weights():
  p = np.array([0.5, 0.3, 0.2])
  # P(row 2 among two draws) = p2 + sum over the other first draws.
  expected = p[2] + p[0] * p[2] / (1 - p[0]) + p[1] * p[2] / (1 - p[1])
  share = draws(np.log(p), 2 / 3).mean(0)
  assert share.sum() == pytest.approx(2)
  assert share[2] == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 2000))


def test_filler_is_never_drawn_nor_counted():
  selected = draws(np.zeros(3), 0.5, (1.0, 0.0, 1.0))
  assert not selected[:, 1].any()
  assert (selected.sum(1) == 1).all()  # half of two rows, not of three
  assert not draws(np.zeros(3), 0.5, (0.0, 0.0, 0.0)).any()


def test_number_drawn_is_rounded_as_decimals_are():
  rows = np.arange(75)
  drawn = selection.without_replacement(
    np.zeros(75), 0.84, np.ones(75), rows, jax.random.key(0)
  )
  assert drawn.sum() == 63  # in float32 the product is 62.999996


def test_underflowing_weights_still_fill_the_count():
  selected = draws(np.array([0.0, -5000.0, -9000.0]), 0.7)
  np.testing.assert_array_equal(selected, np.tile([1, 1, 0], (2000, 1)))


REWARD = np.array([0.5, 2.0, -1.0, 1.0, 0.0], np.float32)


def sample(num, beta, uniform):
  uniform = jnp.broadcast_to(jnp.asarray(uniform), (num, len(REWARD)))
  return selection.rejection_sample_from(REWARD, num, beta, uniform)


def algorithm_1(reward, num, beta, uniform):
  """The loop as the paper writes it, over a list."""
  left, accepted, draws = list(range(len(reward))), [], iter(uniform)
  used = 0
  while len(accepted) < num:
    best = max(reward[i] for i in left)
    for i in list(left):
      if len(accepted) == num:
        break
      used += 1
      if next(draws) < np.exp((reward[i] - best) / beta):
        accepted.append(i)
    left = [i for i in left if i not in accepted]
  return accepted, used


def test_rejection_sampling_is_the_papers_loop():
  rng = np.random.default_rng(0)
  run = jax.jit(
    jax.vmap(selection.rejection_sample_from, (0, None, 0, 0)), static_argnums=1
  )
  reward, beta = rng.normal(size=(40, 6)), rng.uniform(0.2, 3, 40)
  uniform = rng.uniform(size=(40, 4, 6)).astype(np.float32)
  out = run(reward, 4, beta, uniform)
  for i in range(40):
    index, used = algorithm_1(reward[i], 4, beta[i], uniform[i].ravel())
    assert out.index_J[i].tolist() == index
    assert out.draws[i] == used


def test_every_sweep_accepts_only_its_best_for_high_variates():
  out = sample(5, 0.5, 1 - 1e-6)
  assert out.index_J.tolist() == [1, 3, 0, 4, 2]
  assert out.draws == 5 + 4 + 3 + 2 + 1


def test_beta_0_takes_the_best_and_large_beta_the_first():
  assert sample(3, 0.0, 1e-12).index_J.tolist() == [1, 3, 0]
  assert sample(3, 1e-4, 1e-12).index_J.tolist() == [1, 3, 0]
  assert sample(3, 1e6, 0.99).index_J.tolist() == [0, 1, 2]


def test_all_candidates_are_accepted_once_each():
  out = selection.rejection_sample(REWARD, 5, 0.5, jax.random.key(0))
  assert sorted(out.index_J.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num", [0, 6])
def test_more_samples_than_candidates_are_refused(num):
  with pytest.raises(ValueError, match=rf"num={num} of 5 candidates.*between 1 and 5"):
    selection.rejection_sample(REWARD, num, 0.5, jax.random.key(0))


def test_top_share_is_global_and_rounds_down():
  assert selection.top_share(REWARD, 0.5).tolist() == [1, 3]
  assert selection.top_share(jnp.zeros(100), 0.29).shape == (29,)
  with pytest.raises(ValueError, match=r"share=0\.1 of 5 completions selects 0"):
    selection.top_share(REWARD, 0.1)
  with pytest.raises(ValueError, match=r"share=1\.5"):
    selection.top_share(REWARD, 1.5)


def test_best_of_a_prompt_is_the_first_present_one():
  reward = jnp.array([[1.0, 3.0, 9.0], [2.0, 2.0, 0.0]])
  present = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
  assert selection.best_of(reward, present).tolist() == [1, 0]


def test_sdpo_takes_the_previous_stage_as_reference():
  stages = [selection.sdpo_stage(t, (12, 60, 5)) for t in (1, 2, 3)]
  rows = list(range(77))
  assert [r for stage in stages for r in rows[stage.rows]] == rows  # each row once
  assert [len(rows[stage.rows]) for stage in stages] == [12, 60, 5]
  assert [stage.ref for stage in stages] == [0, 1, 2]
  for stage in (0, 4):
    with pytest.raises(ValueError, match=rf"stage={stage}; stages run from 1 to 3"):
      selection.sdpo_stage(stage, (12, 60, 5))
  assert selection.easiest_first(jnp.array([0.4, 0.9, 0.4])).tolist() == [1, 0, 2]
