"""f-divergences between policies, and KL estimators from samples.

D_f(policy || ref) = E_ref f(policy / ref) for a convex f with f(1) = 0. All functions
take the log-ratio u = log(policy / ref) in nats, never the ratio, and each f is
normalised to f'(1) = 0 (a multiple of t - 1 changes no divergence). Where exp would
overflow it is continued by its tangent (`links.exponential`), so that f' and its
gradient are finite for log-ratios of +-1000.
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
  """An f-divergence as functions of the log-ratio u.

  Attributes:
    name: its name in configurations and tables.
    f: u -> f(exp(u)), elementwise.
    slope: u -> f'(exp(u)), elementwise.
    f_at_0: f(0+): finite where the policy may give probability 0 to a completion of the
      reference.
    slope_at_0: f'(0+). If -inf, every completion of the reference keeps positive
      probability, so that the optimal policy has no multiplier of a positivity
      constraint.
    slope_at_inf: limit of f'(t) for t to infinity: f' is invertible between the two
      limits.
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
  above = np.log(2) - jax.nn.softplus(-u)  # log of policy / mean of both
  below = np.log(2) - jax.nn.softplus(u)  # log of reference / mean of both
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

# By name, for configurations; another alpha is passed as a `Divergence`.
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
  """D_f(policy || ref) of two distributions over the last axis, exact, `[...]`.

  Args:
    divergence: the f-divergence.
    logp_V: log-probabilities of the policy; -inf where its probability is 0.
    ref_logp_V: log-probabilities of the reference, all finite.
  """
  chex.assert_equal_shape([logp_V, ref_logp_V])
  zero_V = jnp.isneginf(logp_V)
  # Select before f is evaluated: at -inf its formula may be 0 * inf.
  f_V = divergence.f(jnp.where(zero_V, 0, logp_V - ref_logp_V))
  return (jnp.exp(ref_logp_V) * jnp.where(zero_V, divergence.f_at_0, f_V)).sum(-1)


class KLEstimator(NamedTuple):
  """Estimator of KL(policy || ref) from one sample of the policy, per token.

  In a reward only its value matters: apply `stop_gradient`. In a loss only its gradient
  matters, and on samples of the policy the three differ: in expectation the gradient of
  k1 is 0, that of k2 is the gradient of KL(policy || ref), that of k3 the gradient of
  KL(ref || policy).

  Attributes:
    name: its name in configurations and tables.
    fn: log-ratio log policy - log ref of the sampled token, nats -> estimate, nats.
  """

  name: str
  fn: Callable[[Array], Array]

  def __repr__(self) -> str:
    return self.name


def k1(log_ratio: Array) -> Array:
  """u: unbiased, may be negative."""
  return jnp.asarray(log_ratio)


def k2(log_ratio: Array) -> Array:
  """u^2 / 2: biased, never negative."""
  return log_ratio**2 / 2


def k3(log_ratio: Array) -> Array:
  """exp(-u) - 1 + u: unbiased, never negative; very large where ref >> policy."""
  return links.exponential(log_ratio) - 1 + log_ratio


@functools.cache
def straight_through(value: KLEstimator, gradient: KLEstimator) -> KLEstimator:
  """Combines the value of one estimator with the gradient of another."""

  def fn(log_ratio: Array) -> Array:
    differentiable = gradient.fn(log_ratio)
    return jax.lax.stop_gradient(value.fn(log_ratio) - differentiable) + differentiable

  return KLEstimator(f"{value.name}+{gradient.name}", fn)


@functools.cache
def clipped(
  estimator: KLEstimator, limit: float, log_ratio_limit: float = np.inf
) -> KLEstimator:
  """Clips the value of an estimator to +-limit, and its log-ratio to +-log_ratio_limit.

  The gradient is 0 where a clip is active. OpenRLHF clips every estimate to +-10; verl
  only k3, to +-10 after clipping the log-ratio to +-20; TRL does not clip.
  """

  def fn(log_ratio: Array) -> Array:
    inside = jnp.clip(log_ratio, -log_ratio_limit, log_ratio_limit)
    return jnp.clip(estimator.fn(inside), -limit, limit)

  return KLEstimator(f"{estimator.name} within {limit:g}", fn)


K1, K2, K3 = KLEstimator("k1", k1), KLEstimator("k2", k2), KLEstimator("k3", k3)
ABSOLUTE = KLEstimator("absolute", jnp.abs)
# verl's k1+ and k3+: the unbiased value with k2's gradient, that of the reverse KL.
K1_PLUS, K3_PLUS = straight_through(K1, K2), straight_through(K3, K2)

# By name, for configurations.
KL_ESTIMATORS = {k.name: k for k in (K1, K2, K3, ABSOLUTE, K1_PLUS, K3_PLUS)}
