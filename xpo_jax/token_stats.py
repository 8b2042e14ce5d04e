"""The shared statistics per token: what scoring computes from logits, once.

Every `fn` maps `({role: logits_CV or value_C}, target_C)` to `[C]`; `C` may stand for
several leading axes. Logits are taken as they come (float32 or wider). Nothing gathers
along the vocabulary: the target's logit is picked by comparing an iota with the target
and summing, so that logits sharded over the vocabulary stay where they are.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from xpo_jax.types import Array, Stat


def logp(logits_CV: Array, target_C: Array) -> Array:
  """log softmax of the logits at the target, in nats, `[C]`."""
  id_CV = jax.lax.broadcasted_iota(target_C.dtype, logits_CV.shape, logits_CV.ndim - 1)
  hit_CV = id_CV == target_C[..., None]
  target_logit_C = jnp.where(hit_CV, logits_CV, 0).sum(-1)
  return target_logit_C - jax.nn.logsumexp(logits_CV, axis=-1)


def entropy(logits_CV: Array) -> Array:
  """Entropy of the softmax, in nats, `[C]`; a token of logit -inf adds nothing."""
  logp_CV = jax.nn.log_softmax(logits_CV)
  finite_CV = jnp.where(jnp.isneginf(logits_CV), 0, logp_CV)
  return -(jnp.exp(logp_CV) * finite_CV).sum(-1)


def kl(p_logits_CV: Array, q_logits_CV: Array) -> Array:
  """KL(p || q) over the whole vocabulary, in nats, `[C]`.

  Taken between log-softmaxes: a token whose probability underflows in `p` adds 0, not
  the 0 * inf of `log(softmax)`.
  """
  logp_CV = jax.nn.log_softmax(p_logits_CV)
  logq_CV = jax.nn.log_softmax(q_logits_CV)
  possible_CV = ~jnp.isneginf(p_logits_CV)
  # Select before the product: exp(-inf) * -inf would be NaN, also in the gradient.
  ratio_CV = jnp.where(possible_CV, logp_CV, 0) - jnp.where(possible_CV, logq_CV, 0)
  return (jnp.exp(logp_CV) * ratio_CV).sum(-1)


def _logp(roles: Mapping[str, Array], target_C: Array) -> Array:
  return logp(roles["policy"], target_C)


def _ref_logp(roles: Mapping[str, Array], target_C: Array) -> Array:
  return logp(roles["ref"], target_C)


def _value(roles: Mapping[str, Array], target_C: Array) -> Array:
  del target_C
  return roles["policy.value"]


def _entropy(roles: Mapping[str, Array], target_C: Array) -> Array:
  del target_C
  return entropy(roles["policy"])


def _ref_kl(roles: Mapping[str, Array], target_C: Array) -> Array:
  del target_C
  return kl(roles["ref"], roles["policy"])


def _policy_kl(roles: Mapping[str, Array], target_C: Array) -> Array:
  del target_C
  return kl(roles["policy"], roles["ref"])


LOGP = Stat("logp_BKT", ("policy",), _logp)
REF_LOGP = Stat("ref_logp_BKT", ("ref",), _ref_logp)
VALUE = Stat("value_BKT", ("policy.value",), _value)
ENTROPY = Stat("entropy_BKT", ("policy",), _entropy)  # in Scored.extra
REF_KL = Stat("ref_kl_BKT", ("ref", "policy"), _ref_kl)  # KL(ref || policy)
POLICY_KL = Stat("policy_kl_BKT", ("policy", "ref"), _policy_kl)  # in Scored.extra
