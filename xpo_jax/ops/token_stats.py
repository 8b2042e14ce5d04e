"""Per-token statistics that scoring computes from logits, each once for all objectives.

Every `fn` maps `({role: logits_CV or value_C}, target_C)` to `[C]`, or with axes after
C; `C` may stand for several leading axes. Logits keep their type (float32 or wider).
The logit of the target is not gathered along the vocabulary but selected by comparing
an iota with the target and summing, so that logits sharded over the vocabulary are not
collected; only `contrast_tokens` has to collect them.

Each also says in `reduced` how it follows from `ops.head.reductions`, which need no
array of logits. The two are tested to be equal, values and gradients.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import cast

import jax
import jax.numpy as jnp

from xpo_jax.ops import capping
from xpo_jax.ops.head import reductions
from xpo_jax.ops.head.reductions import Logits, LogProbMean, LogSumExp, Mean, Target
from xpo_jax.types import Array, Reduced, TokenStat

_POLICY = Logits("policy")


def logp(logits_CV: Array, target_C: Array) -> Array:
  """log softmax of the logits at the target, in nats, `[C]`."""
  return _target_logit(logits_CV, target_C) - jax.nn.logsumexp(logits_CV, axis=-1)


def rest_logp(logits_CV: Array, target_C: Array) -> Array:
  """log(1 - p(target)), in nats, `[C]`: the log-probability of all other tokens.

  Computed as a difference of two logsumexps, so that it and its gradient stay finite
  where p rounds to 1 and log1p(-p) does not.
  """
  others_CV = jnp.where(_is_target(logits_CV, target_C), -jnp.inf, logits_CV)
  return jax.nn.logsumexp(others_CV, axis=-1) - jax.nn.logsumexp(logits_CV, axis=-1)


def top_contrast_tokens(
  logits_CV: Array, target_C: Array, k: int
) -> tuple[Array, Array]:
  """The k most likely tokens other than the target, in descending order.

  Returns:
    Their logits and their ids, `[C, J]` with J = k.

  Raises:
    ValueError: the vocabulary has no k other tokens.
  """
  vocab = logits_CV.shape[-1]
  if k >= vocab:
    raise ValueError(
      f"k={k} contrast tokens of a token need a vocabulary > {k}, this is {vocab}"
    )
  others_CV = jnp.where(_is_target(logits_CV, target_C), -jnp.inf, logits_CV)
  return jax.lax.top_k(others_CV, k)


@functools.lru_cache(maxsize=None, typed=True)  # equal statistics are the same object
def contrast_tokens(k: int) -> TokenStat:
  """Logits of `top_contrast_tokens`, then the token's own logit: `[C, k + 1]`.

  Raises:
    ValueError: k is not a whole number of at least 1.
  """
  if not isinstance(k, int) or k < 1:
    raise ValueError(
      f"contrast tokens: k={k!r} must be a whole number >= 1 (CRINGE: k=1)"
    )

  def fn(roles: Mapping[str, Array], target_C: Array) -> Array:
    logits_CV = roles["policy"]
    contrast_CJ, _ = top_contrast_tokens(logits_CV, target_C, k)
    return _with_own(contrast_CJ, _target_logit(logits_CV, target_C))

  def by_blocks(top: tuple[Array, Array], own_C: Array, target_C: Array) -> Array:
    del target_C
    return _with_own(top[0], own_C)

  read = reductions.Top(_POLICY, k, others=True), Target(_POLICY)
  field = f"contrast_logits_{k}_BKTJ"
  return TokenStat(field, ("policy",), fn, Reduced(read, by_blocks))


def _with_own(contrast_CJ: Array, own_C: Array) -> Array:
  return jnp.concatenate([contrast_CJ, own_C[..., None]], axis=-1)


@functools.lru_cache(maxsize=None, typed=True)  # equal statistics are the same object
def tempered(stat: TokenStat, temperature: float) -> TokenStat:
  """The statistic of policies whose logits are divided by a temperature.

  The logits of every role are divided (policy, reference, ..); scalar heads are not.

  Args:
    stat: any statistic.
    temperature: > 0; 1 gives the statistic itself.

  Raises:
    ValueError: temperature <= 0.
  """
  if not temperature > 0:
    raise ValueError(f"tempered: temperature={temperature} must be > 0")
  if temperature == 1:
    return stat

  def fn(roles: Mapping[str, Array], target_C: Array) -> Array:
    tempered_roles = {
      role: x if "." in role else x / temperature for role, x in roles.items()
    }
    return stat.fn(tempered_roles, target_C)

  def divided(logits: Logits) -> Logits:
    # The bound of divided logits: c tanh(x / T c) = (T c tanh(x / T c)) / T.
    cap = logits.softcap and logits.softcap * temperature
    return Logits(logits.role, cap, logits.temperature * temperature)

  return stat._replace(fn=fn, reduced=_reading(stat.reduced, divided))


@functools.cache
def detached(stat: TokenStat) -> TokenStat:
  """The statistic without a gradient: reported, never trained on.

  Its backward pass is not computed.
  """

  def fn(roles: Mapping[str, Array], target_C: Array) -> Array:
    return stat.fn(jax.lax.stop_gradient(dict(roles)), target_C)

  reduced = stat.reduced and stat.reduced._replace(detached=True)
  return stat._replace(fn=fn, reduced=reduced)


def _reading(
  reduced: Reduced | None, change: Callable[[Logits], Logits]
) -> Reduced | None:
  """The same function of reductions of other logits."""
  if reduced is None:
    return None
  own = cast(tuple[reductions.Reduction, ...], reduced.reductions)
  read = (reductions.reading(one, change) for one in own)
  return reduced._replace(reductions=tuple(read))


@functools.cache
def capped(stat: TokenStat, softcaps: tuple[tuple[str, float], ...]) -> TokenStat:
  """The statistic of models whose logits x are bounded to c tanh(x / c).

  Args:
    stat: any statistic.
    softcaps: role and c, of the roles with such a bound (Gemma 2).

  Raises:
    ValueError: its logits are bounded already.
  """
  if not softcaps:
    return stat

  def fn(roles: Mapping[str, Array], target_C: Array) -> Array:
    bounded = {
      role: capping.soft_cap(roles[role], cap)
      for role, cap in softcaps
      if role in roles
    }
    return stat.fn(dict(roles) | bounded, target_C)

  def bound(logits: Logits) -> Logits:
    if logits.softcap is not None:
      raise ValueError(
        f"{stat.field}: logits of {logits.role!r} are bounded to {logits.softcap} "
        "already; cap a statistic once"
      )
    return dataclasses.replace(logits, softcap=dict(softcaps).get(logits.role))

  return stat._replace(fn=fn, reduced=_reading(stat.reduced, bound))


def entropy(logits_CV: Array) -> Array:
  """Entropy of the softmax, in nats, `[C]`; a logit of -inf adds 0."""
  logp_CV = jax.nn.log_softmax(logits_CV)
  finite_CV = jnp.where(jnp.isneginf(logits_CV), 0, logp_CV)
  return -(jnp.exp(logp_CV) * finite_CV).sum(-1)


def kl(p_logits_CV: Array, q_logits_CV: Array) -> Array:
  """KL(p || q) over the whole vocabulary, in nats, `[C]`.

  Computed from log-softmaxes: a token whose probability underflows in `p` adds 0, not
  the 0 * inf of `log(softmax)`.
  """
  return _kl(jax.nn.log_softmax(p_logits_CV), jax.nn.log_softmax(q_logits_CV))


def _kl(logp_CV: Array, logq_CV: Array) -> Array:
  """KL(p || q) from log-probabilities."""
  possible_CV = ~jnp.isneginf(logp_CV)
  # Select before the product: exp(-inf) * -inf would be NaN, also in the gradient.
  ratio_CV = jnp.where(possible_CV, logp_CV, 0) - jnp.where(possible_CV, logq_CV, 0)
  return (jnp.exp(logp_CV) * ratio_CV).sum(-1)


def log_mixture(logp: Array, other_logp: Array, share: float | Array) -> Array:
  """log((1 - share) p + share other), elementwise, of log-probabilities in nats.

  Args:
    logp: log-probabilities; -inf where p is 0.
    other_logp: those of the other distribution.
    share: weight of the other distribution, in [0, 1].
  """
  own, other = jnp.log1p(-share) + logp, jnp.log(share) + other_logp
  # Select before the sum: the gradient of logaddexp at two -inf would be NaN.
  possible = ~(jnp.isneginf(own) & jnp.isneginf(other))
  mixed = jnp.logaddexp(*(jnp.where(possible, x, 0) for x in (own, other)))
  return jnp.where(possible, mixed, -jnp.inf)


def jsd(p_logits_CV: Array, q_logits_CV: Array, interpolation: float) -> Array:
  """Generalised Jensen-Shannon divergence over the whole vocabulary, in nats, `[C]`.

  b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q and b the interpolation.
  D / b tends to KL(p || q) for b -> 0, and D / (1 - b) to KL(q || p) for b -> 1. D is
  at most log 2 and zero at both ends.

  Args:
    p_logits_CV: logits of p.
    q_logits_CV: logits of q.
    interpolation: b, 0 < b < 1; 1/2 is the Jensen-Shannon divergence.
  """
  logp_CV = jax.nn.log_softmax(p_logits_CV)
  logq_CV = jax.nn.log_softmax(q_logits_CV)
  # sg: of all distributions, m minimises the sum, so that its gradient is 0 there.
  mixture_CV = jax.lax.stop_gradient(log_mixture(logq_CV, logp_CV, interpolation))
  of_p_C, of_q_C = _kl(logp_CV, mixture_CV), _kl(logq_CV, mixture_CV)
  return interpolation * of_p_C + (1 - interpolation) * of_q_C


def _is_target(logits_CV: Array, target_C: Array) -> Array:
  id_CV = jax.lax.broadcasted_iota(target_C.dtype, logits_CV.shape, logits_CV.ndim - 1)
  return id_CV == target_C[..., None]


def _target_logit(logits_CV: Array, target_C: Array) -> Array:
  return jnp.where(_is_target(logits_CV, target_C), logits_CV, 0).sum(-1)


def _difference(x_C: Array, y_C: Array, target_C: Array) -> Array:
  del target_C
  return x_C - y_C


@functools.cache  # equal statistics are the same object
def logp_of(role: str, field: str) -> TokenStat:
  """The log-probability of the target under a role.

  Args:
    role: "policy", "ref", or another frozen set of the run.
    field: of `Scored`, or the key in `Scored.extra`.
  """

  def fn(roles: Mapping[str, Array], target_C: Array) -> Array:
    return logp(roles[role], target_C)

  read = Target(Logits(role)), LogSumExp(Logits(role))
  return TokenStat(field, (role,), fn, Reduced(read, _difference))


@functools.cache  # equal statistics are the same object
def kl_of(p: str, q: str, field: str) -> TokenStat:
  """KL(p || q) of two roles; p, q and field as in `logp_of`."""

  def fn(roles: Mapping[str, Array], target_C: Array) -> Array:
    del target_C
    return kl(roles[p], roles[q])

  def by_blocks(difference_C: Array, p_C: Array, q_C: Array, target_C: Array) -> Array:
    # E_p[log p - log q], of logits: their difference, less that of the normalisers.
    del target_C
    return difference_C - (p_C - q_C)

  logits = Logits(p), Logits(q)
  read = Mean(logits[0], logits, jnp.subtract), *(LogSumExp(one) for one in logits)
  return TokenStat(field, (p, q), fn, Reduced(read, by_blocks))


def _rest_logp(roles: Mapping[str, Array], target_C: Array) -> Array:
  return rest_logp(roles["policy"], target_C)


def _value(roles: Mapping[str, Array], target_C: Array) -> Array:
  del target_C
  return roles["policy.value"]


def _reward_head(roles: Mapping[str, Array], target_C: Array) -> Array:
  del target_C
  return roles["policy.reward"]


def _entropy(roles: Mapping[str, Array], target_C: Array) -> Array:
  del target_C
  return entropy(roles["policy"])


def _itself(logits: Array) -> Array:
  return logits


LOGP = logp_of("policy", "logp_BKT")
REF_LOGP = logp_of("ref", "ref_logp_BKT")
REST_LOGP = TokenStat(  # in Scored.extra
  "rest_logp_BKT",
  ("policy",),
  _rest_logp,
  Reduced((LogSumExp(_POLICY, others=True), LogSumExp(_POLICY)), _difference),
)
VALUE = TokenStat("value_BKT", ("policy.value",), _value)
REWARD_HEAD = TokenStat("reward_head_BKT", ("policy.reward",), _reward_head)
ENTROPY = TokenStat(  # in Scored.extra
  "entropy_BKT",
  ("policy",),
  _entropy,
  Reduced((LogSumExp(_POLICY), Mean(_POLICY, (_POLICY,), _itself)), _difference),
)
REF_KL = kl_of("ref", "policy", "ref_kl_BKT")
POLICY_KL = kl_of("policy", "ref", "policy_kl_BKT")  # in Scored.extra
# Distillation, in Scored.extra.
TEACHER_LOGP = logp_of("teacher", "teacher_logp_BKT")
TEACHER_KL = kl_of("teacher", "policy", "teacher_kl_BKT")
POLICY_TEACHER_KL = kl_of("policy", "teacher", "policy_teacher_kl_BKT")


@functools.cache  # equal statistics are the same object
def teacher_jsd(interpolation: float) -> TokenStat:
  """`jsd` of teacher and policy at each position; at its ends the KL of the limit.

  Args:
    interpolation: 0 gives TEACHER_KL (forward), 1 POLICY_TEACHER_KL (reverse), between
      them the divergence itself, whose limits are 0.

  Raises:
    ValueError: outside [0, 1].
  """
  if not 0 <= interpolation <= 1:
    raise ValueError(
      f"teacher_jsd: interpolation={interpolation!r}; allowed: 0 (forward KL) to 1 "
      "(reverse KL)"
    )
  if interpolation in (0, 1):
    return POLICY_TEACHER_KL if interpolation else TEACHER_KL

  def fn(roles: Mapping[str, Array], target_C: Array) -> Array:
    del target_C
    return jsd(roles["teacher"], roles["policy"], interpolation)

  def to_mixture(logp: Array, logq: Array, share: float) -> Array:
    return logp - log_mixture(logp, logq, share)

  # b KL(teacher || m) + (1 - b) KL(policy || m). m is held constant, as in `jsd`, and
  # so may log p be: the mean of its gradient under p is 0.
  both = Logits("teacher"), _POLICY
  of_teacher = functools.partial(to_mixture, share=1 - interpolation)
  of_policy = functools.partial(to_mixture, share=interpolation)
  read = (
    LogProbMean(both[0], both, of_teacher),
    LogProbMean(both[1], both[::-1], of_policy),
  )

  def by_blocks(teacher_C: Array, policy_C: Array, target_C: Array) -> Array:
    del target_C
    return interpolation * teacher_C + (1 - interpolation) * policy_C

  field = f"teacher_jsd_{interpolation}_BKT"
  return TokenStat(field, ("teacher", "policy"), fn, Reduced(read, by_blocks))
