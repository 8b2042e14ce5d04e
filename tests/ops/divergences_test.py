"""f-divergences and KL estimators against their formulas of the ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.ops import divergences

LOG_RATIO = np.linspace(-4.0, 4.0, 81)


def js(t):
  return t * np.log(2 * t / (1 + t)) + np.log(2 / (1 + t))


def alpha(a):
  return lambda t: (t ** (1 - a) - (1 - a) * t - a) / (a * (a - 1))


# f as papers print it, of the ratio t, up to a multiple of t - 1.
ORACLES = {
  "reverse_kl": lambda t: t * np.log(t),
  "forward_kl": lambda t: -np.log(t),
  "jensen_shannon": js,
  "alpha(0.3)": alpha(0.3),
  "alpha(0.5)": alpha(0.5),
  "alpha(0.7)": alpha(0.7),
  "total_variation": lambda t: abs(t - 1) / 2,
  "chi_square": lambda t: (t - 1) ** 2 / 2,
}
SMOOTH = [d for d in divergences.DIVERGENCES.values() if d.name != "total_variation"]

every = pytest.mark.parametrize(
  "divergence", divergences.DIVERGENCES.values(), ids=divergences.DIVERGENCES
)
every_smooth = pytest.mark.parametrize("divergence", SMOOTH, ids=repr)


@every
def test_divergence_of_two_distributions_is_the_formula(divergence):
  p, q = np.array([0.1, 0.6, 0.3]), np.array([0.5, 0.2, 0.3])
  expected = (q * ORACLES[divergence.name](p / q)).sum()
  actual = divergences.between(divergence, jnp.log(p), jnp.log(q))
  assert actual == pytest.approx(expected, rel=1e-5)
  assert divergences.between(divergence, jnp.log(p), jnp.log(p)) == pytest.approx(
    0, abs=1e-6
  )


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("reverse_kl", np.log(2)),
    ("forward_kl", np.inf),
    ("jensen_shannon", np.log(4 / 3) + (np.log(2) + np.log(2 / 3)) / 2),
    ("alpha(0.5)", 4 * (1 - np.sqrt(0.5))),
    ("total_variation", 0.5),
    ("chi_square", 0.5),
  ],
)
def test_completion_of_probability_0_counts_f_at_0(name, expected):
  """All mass on one of two completions of equal reference probability."""
  policy, ref = jnp.array([-jnp.inf, 0.0]), jnp.log(jnp.array([0.5, 0.5]))
  actual = divergences.between(divergences.DIVERGENCES[name], policy, ref)
  assert actual == pytest.approx(expected, rel=1e-6)


@every_smooth
def test_slope_is_the_derivative_of_f_in_the_ratio(divergence):
  with jax.enable_x64(True):
    u = jnp.asarray(LOG_RATIO)
    by_u = jax.jit(jax.vmap(jax.grad(divergence.f)))(u)
    # d f / d u = f'(t) t
    slope = np.asarray(jax.jit(divergence.slope)(u))
    np.testing.assert_allclose(slope * np.exp(LOG_RATIO), by_u, 1e-9, 1e-12)


@every_smooth
def test_f_is_convex_and_least_where_the_policies_agree(divergence):
  with jax.enable_x64(True):
    slope = np.asarray(jax.jit(divergence.slope)(jnp.asarray(LOG_RATIO)))
    assert divergence.f(0.0) == pytest.approx(0)
    assert divergence.slope(0.0) == pytest.approx(0)
  assert np.all(np.diff(slope) > 0)


@every
def test_recorded_limits_are_those_of_f_and_its_slope(divergence):
  with jax.enable_x64(True):
    low, high = jnp.asarray(-300.0), jnp.asarray(300.0)

    def reached(limit, value):
      if np.isinf(limit):
        assert np.sign(limit) * value > 250
      else:
        assert value == pytest.approx(limit, rel=1e-6, abs=1e-12)

    reached(divergence.f_at_0, divergence.f(low))
    reached(divergence.slope_at_0, divergence.slope(low))
    reached(divergence.slope_at_inf, divergence.slope(high))


@every
@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0])
def test_extreme_log_ratios_stay_finite(divergence, log_ratio):
  for fn in (divergence.f, divergence.slope):
    value, gradient = jax.jit(jax.value_and_grad(fn))(log_ratio)
    assert np.isfinite(value)
    assert np.isfinite(gradient)


def test_alpha_has_both_kls_as_limits():
  u = jnp.asarray(LOG_RATIO, jnp.float32)
  np.testing.assert_allclose(
    divergences.alpha(1.0).slope(u), divergences.FORWARD_KL.slope(u)
  )
  near_0 = divergences.alpha(1e-3).slope(u)
  np.testing.assert_allclose(near_0, divergences.REVERSE_KL.slope(u), 1e-2, 1e-3)
  assert divergences.alpha(0.5) is divergences.alpha(0.5)
  # TRL: t^(a - 1) / (a - 1), up to a constant.
  trl = divergences.alpha_from_trl(0.3).slope(u)
  expected = np.exp(-0.7 * LOG_RATIO) / -0.7
  np.testing.assert_allclose(trl - trl[40], expected - expected[40], 1e-5, 1e-6)


@pytest.mark.parametrize("a", [0.0, float("nan")])
def test_undefined_alpha_is_refused(a):
  with pytest.raises(ValueError, match=r"alpha=.* REVERSE_KL"):
    divergences.alpha(a)


@pytest.mark.parametrize("name", divergences.KL_ESTIMATORS)
def test_kl_estimator_values(name):
  d = LOG_RATIO
  value = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d, "absolute": abs(d)}
  actual = divergences.KL_ESTIMATORS[name].fn(jnp.asarray(d, jnp.float32))
  np.testing.assert_allclose(actual, value[name.split("+")[0]], rtol=1e-5, atol=1e-5)


def test_straight_through_has_the_gradient_of_the_other():
  for mixed in (divergences.K1_PLUS, divergences.K3_PLUS):
    assert jax.grad(mixed.fn)(1.7) == pytest.approx(1.7)  # of u^2 / 2


def test_clipping_is_of_log_ratio_and_value():
  tight = divergences.clipped(divergences.K3, 10.0, log_ratio_limit=20.0)
  d = jnp.asarray([-25.0, -1.0, 5.0, 100.0])
  np.testing.assert_allclose(tight.fn(d), [10, np.e - 2, 4 + np.exp(-5), 10], 1e-6)
  assert tight is divergences.clipped(divergences.K3, 10.0, log_ratio_limit=20.0)
  np.testing.assert_array_equal(jax.vmap(jax.grad(tight.fn))(d)[jnp.array([0, 3])], 0)
  ratio_alone = divergences.clipped(divergences.K2, 1e9, log_ratio_limit=2.0)
  np.testing.assert_allclose(ratio_alone.fn(d), [2, 0.5, 2, 2], 1e-6)


@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0])
@pytest.mark.parametrize("estimator", divergences.KL_ESTIMATORS.values(), ids=repr)
def test_estimators_stay_finite(estimator, log_ratio):
  assert np.all(np.isfinite(jax.value_and_grad(estimator.fn)(log_ratio)))
