"""Intervals against the textbook's formulas, coverage, and pairing."""

import math

import numpy as np
import pytest

from xpo_jax.evaluation import bootstrap


def test_clustered_se_of_single_values_is_the_textbook_one():
  x = np.random.default_rng(0).normal(size=50)
  want = x.std(ddof=1) / math.sqrt(50)
  np.testing.assert_allclose(bootstrap.clustered_se(x), want, rtol=1e-12)


def test_clustered_se_of_equal_clusters_is_that_of_their_means():
  x = np.random.default_rng(1).normal(size=(20, 4)) + np.arange(20)[:, None]
  want = x.mean(1).std(ddof=1) / math.sqrt(20)
  got = bootstrap.clustered_se(x.ravel(), np.repeat(np.arange(20), 4))
  np.testing.assert_allclose(got, want, rtol=1e-12)
  assert got > 1.5 * bootstrap.clustered_se(x.ravel())


def test_mean_of_unequal_clusters_is_the_plain_mean():
  interval = bootstrap.bootstrap_mean(np.array([1.0, 2, 3, 10]), np.array([0, 0, 0, 1]))
  assert interval.mean == 4.0
  assert interval.units == 2


def test_interval_of_normal_values_is_close_to_the_normal_one():
  x = np.random.default_rng(2).normal(size=400)
  got = bootstrap.bootstrap_mean(x)
  half = 1.96 * x.std(ddof=1) / 20
  np.testing.assert_allclose(got.low, x.mean() - half, atol=0.1 * half)
  np.testing.assert_allclose(got.high, x.mean() + half, atol=0.1 * half)


def test_interval_covers_the_truth_about_95_times_in_100(monkeypatch):
  monkeypatch.setattr(bootstrap, "RESAMPLES", 400)
  rng = np.random.default_rng(3)
  hits = 0
  for i in range(200):
    x = rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 3))
    got = bootstrap.bootstrap_mean(x.ravel(), np.repeat(np.arange(40), 3), seed=i)
    hits += got.low <= 0 <= got.high
  # 95 % of 200 is 190; the binomial's own noise is 3.
  assert 178 <= hits <= 199


def test_constant_values_have_an_interval_of_no_width():
  got = bootstrap.bootstrap_mean(np.full(10, 0.25))
  assert (got.mean, got.low, got.high, got.se) == (0.25, 0.25, 0.25, 0.0)


def test_single_prompt_has_no_interval():
  got = bootstrap.bootstrap_mean(np.array([1.0, 3.0]), np.array([7, 7]))
  assert got.mean == 2.0
  assert math.isnan(got.low) and math.isnan(got.se)


def test_same_seed_gives_the_same_interval():
  x = np.random.default_rng(4).normal(size=30)
  assert bootstrap.bootstrap_mean(x, seed=1) == bootstrap.bootstrap_mean(x, seed=1)
  assert bootstrap.bootstrap_mean(x, seed=1) != bootstrap.bootstrap_mean(x, seed=2)


def test_pairing_removes_the_noise_both_share():
  rng = np.random.default_rng(5)
  shared, noise = rng.normal(size=200), 0.05 * rng.normal(size=200)
  gap = bootstrap.paired_bootstrap(shared + 0.1 + noise, shared)
  apart = bootstrap.bootstrap_mean(shared)
  assert gap.low > 0
  assert gap.high - gap.low < 0.2 * (apart.high - apart.low)


def test_seeds_interval_covers_noise_between_seeds_and_between_prompts():
  rng = np.random.default_rng(6)
  seeds, prompts = 30, 50
  x = rng.normal(size=(seeds, 1)) + rng.normal(size=(1, prompts))
  # Crossed effects: var(mean) = s_seed^2 / S + s_prompt^2 / P, ddof 0 as resampled.
  want = math.sqrt(x.mean(1).var() / seeds + x.mean(0).var() / prompts)
  np.testing.assert_allclose(bootstrap.bootstrap_seeds(x).se, want, rtol=0.05)


def test_by_seed_shows_each_seed_and_their_spread():
  x = np.array([[1.0, 2, 3], [2, 3, 4], [4, 5, 6]])
  got = bootstrap.by_seed(x)
  assert [one.mean for one in got.each] == [2, 3, 5]
  np.testing.assert_allclose(got.sd, np.std([2, 3, 5], ddof=1))
  np.testing.assert_allclose(got.pooled.mean, 10 / 3)


def test_paired_seeds_accept_one_baseline_for_all():
  a = np.array([[1.0, 2, 3], [3, 4, 5]])
  got = bootstrap.paired_bootstrap(a, np.array([0.0, 1, 2]))
  assert got.mean == 2.0
  # Every prompt's gap equals its seed's: only seeds move the mean.
  assert (got.low, got.high) == (1.0, 3.0)


@pytest.mark.parametrize(
  "call",
  [
    lambda: bootstrap.bootstrap_mean(np.array([])),
    lambda: bootstrap.bootstrap_mean(np.array([1.0, np.inf])),
    lambda: bootstrap.bootstrap_mean(np.ones(3), np.zeros(2)),
    lambda: bootstrap.bootstrap_seeds(np.ones(3)),
    lambda: bootstrap.paired_bootstrap(np.ones(3), np.ones(4)),
    lambda: bootstrap.paired_bootstrap(np.ones((2, 3)), np.ones((2, 3)), np.ones(3)),
  ],
)
def test_bad_values_are_refused(call):
  with pytest.raises(ValueError):
    call()
