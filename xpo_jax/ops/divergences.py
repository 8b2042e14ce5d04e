"""Divergences between policies: f and f' of a log-ratio, and KL from samples.

D_f(policy || ref) = E_ref f(policy / ref) for a convex f with f(1) = 0. Everything is
a function of the log-ratio u = log(policy / ref) in nats, never of the ratio, and each
f is written with f'(1) = 0 (a multiple of t - 1 changes no divergence). Where exp would
leave the type's range it goes on along its tangent (`links.exponential`), so that f'
and its gradient are finite for log-ratios of +-1000.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.ops import links
from xpo_jax.types import Array


class Divergence(NamedTuple):
  """An f-divergence, its functions taken at a log-ratio u.

  Attributes:
    name: what a configuration and a table call it.
    f: u -> f(exp(u)), elementwise.
    slope: u -> f'(exp(u)), elementwise.
    f_at_0: f(0+): finite where a policy may leave out what the reference can say.
    slope_at_0: f'(0+). -inf keeps every answer of the reference possible, so that no
      multiplier of a positivity constraint enters the optimal policy.
    slope_at_inf: f'(t) for t to infinity: f' inverts between these two.
  """

  name: str
  f: Callable[[Array], Array]
  slope: Callable[[Array], Array]
  f_at_0: float
  slope_at_0: float
  slope_at_inf: float

  def __repr__(self) -> str:
    return self.name


def _exp(x: Array) -> Array:
  return links.exponential(-x)


def _reverse_kl(u: Array) -> Array:
  return (u - 1) * _exp(u) + 1


def _reverse_kl_slope(u: Array) -> Array:
  return jnp.asarray(u)


def _forward_kl(u: Array) -> Array:
  return _exp(u) - 1 - u


def _forward_kl_slope(u: Array) -> Array:
  return 1 - _exp(-u)


def _jensen_shannon(u: Array) -> Array:
  above = np.log(2) - jax.nn.softplus(-u)  # log of policy over the mean of both
  below = np.log(2) - jax.nn.softplus(u)  # log of reference over that mean
  return _exp(u) * above + below


def _jensen_shannon_slope(u: Array) -> Array:
  return np.log(2) - jax.nn.softplus(-u)


def _total_variation(u: Array) -> Array:
  return jnp.abs(_exp(u) - 1) / 2


def _total_variation_slope(u: Array) -> Array:
  return jnp.sign(u) / 2


@functools.cache
def alpha(a: float) -> Divergence:
  """The alpha-divergence with f'(t) = (1 - t^-a) / a.

  a = 1 is the forward KL, a -> 0 the reverse KL, a = -1 chi-square. f'(0+) is -inf for
  a > 0 only. Wang et al. 2023, arXiv:2309.16240, take 0 < a < 1.

  Raises:
    ValueError: a = 0 or not finite.
  """
  if not np.isfinite(a) or a == 0:
    raise ValueError(f"alpha={a!r} must be finite and not 0; 0 is REVERSE_KL")
  if a == 1:
    return FORWARD_KL._replace(name="alpha(1)")

  def f(u: Array) -> Array:
    return (_exp((1 - a) * u) - (1 - a) * _exp(u) - a) / (a * (a - 1))

  def slope(u: Array) -> Array:
    return (1 - _exp(-a * u)) / a

  f_at_0 = 1 / (1 - a) if a < 1 else np.inf
  limits = (-np.inf, 1 / a) if a > 0 else (1 / a, np.inf)
  return Divergence(f"alpha({a:g})", f, slope, f_at_0, *limits)


def alpha_from_trl(coefficient: float) -> Divergence:
  """`alpha` from `f_alpha_divergence_coef` of TRL from 0.29 on: a = 1 - coefficient."""
  return alpha(1 - coefficient)


REVERSE_KL = Divergence(
  "reverse_kl", _reverse_kl, _reverse_kl_slope, 1.0, -np.inf, np.inf
)
FORWARD_KL = Divergence(
  "forward_kl", _forward_kl, _forward_kl_slope, np.inf, -np.inf, 1.0
)
# Twice the usual Jensen-Shannon divergence, as in f-DPO.
JENSEN_SHANNON = Divergence(
  "jensen_shannon",
  _jensen_shannon,
  _jensen_shannon_slope,
  float(np.log(2)),
  -np.inf,
  float(np.log(2)),
)
TOTAL_VARIATION = Divergence(
  "total_variation", _total_variation, _total_variation_slope, 0.5, -0.5, 0.5
)
CHI_SQUARE = alpha(-1.0)._replace(name="chi_square")

# By name: how a configuration says which. Another alpha is given as a value.
DIVERGENCES = {
  d.name: d
  for d in (
    REVERSE_KL,
    FORWARD_KL,
    JENSEN_SHANNON,
    *map(alpha, (0.3, 0.5, 0.7)),
    TOTAL_VARIATION,
    CHI_SQUARE,
  )
}


def between(divergence: Divergence, logp_V: Array, ref_logp_V: Array) -> Array:
  """D_f(policy || ref) of two distributions over the last axis, exactly, `[...]`.

  Args:
    divergence: which.
    logp_V: log-probabilities of the policy; -inf on an answer it never gives.
    ref_logp_V: log-probabilities of the reference, all finite.
  """
  chex.assert_equal_shape([logp_V, ref_logp_V])
  never_V = jnp.isneginf(logp_V)
  # Select before f is taken: at -inf its formula may be 0 * inf.
  f_V = divergence.f(jnp.where(never_V, 0, logp_V - ref_logp_V))
  return (jnp.exp(ref_logp_V) * jnp.where(never_V, divergence.f_at_0, f_V)).sum(-1)


class KLEstimator(NamedTuple):
  """KL(policy || ref) from one sample of the policy, per token.

  As a reward its value counts, and it belongs under `stop_gradient`. As a term of a
  loss its gradient does, and on samples of the policy the three differ: k1's is zero
  in expectation, k2's that of KL(policy || ref), k3's that of KL(ref || policy).

  Attributes:
    name: what a configuration and a table call it.
    fn: log-ratio log policy - log ref of the sampled token, nats -> estimate, nats.
  """

  name: str
  fn: Callable[[Array], Array]

  def __repr__(self) -> str:
    return self.name


def k1(log_ratio: Array) -> Array:
  """u: unbiased, of either sign."""
  return jnp.asarray(log_ratio)


def k2(log_ratio: Array) -> Array:
  """u^2 / 2: biased, never negative."""
  return log_ratio**2 / 2


def k3(log_ratio: Array) -> Array:
  """exp(-u) - 1 + u: unbiased, never negative; explodes where ref >> policy."""
  return links.exponential(log_ratio) - 1 + log_ratio


@functools.cache
def straight_through(value: KLEstimator, gradient: KLEstimator) -> KLEstimator:
  """The value of one estimator with the gradient of another."""

  def fn(log_ratio: Array) -> Array:
    carrier = gradient.fn(log_ratio)
    return jax.lax.stop_gradient(value.fn(log_ratio) - carrier) + carrier

  return KLEstimator(f"{value.name}+{gradient.name}", fn)


@functools.cache
def clipped(
  estimator: KLEstimator, limit: float, log_ratio_limit: float = np.inf
) -> KLEstimator:
  """The estimator with its value kept within +-limit, its log-ratio within its own.

  No gradient flows where it is clipped. OpenRLHF clips every estimate to +-10; verl
  k3 alone, to +-10 after the log-ratio to +-20; TRL none.
  """

  def fn(log_ratio: Array) -> Array:
    inside = jnp.clip(log_ratio, -log_ratio_limit, log_ratio_limit)
    return jnp.clip(estimator.fn(inside), -limit, limit)

  return KLEstimator(f"{estimator.name} within {limit:g}", fn)


K1, K2, K3 = KLEstimator("k1", k1), KLEstimator("k2", k2), KLEstimator("k3", k3)
ABSOLUTE = KLEstimator("absolute", jnp.abs)
# verl's k1+ and k3+: the unbiased value, the right gradient.
K1_PLUS, K3_PLUS = straight_through(K1, K2), straight_through(K3, K2)

# By name: how a configuration says which.
KL_ESTIMATORS = {k.name: k for k in (K1, K2, K3, ABSOLUTE, K1_PLUS, K3_PLUS)}
