"""Statistics per token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats

from tests import compiled
from xpo_jax.ops import token_stats
from xpo_jax.types import Scored

token_stats = compiled.module(token_stats)

RNG = np.random.default_rng(0)
POLICY, REF = RNG.normal(size=(2, 4, 6)).astype(np.float32) * 3
TARGET = np.array([0, 5, 2, 2], np.int32)
ROLES = {"policy": POLICY, "ref": REF, "teacher": REF, "policy.value": POLICY[:, 0]}
ROLES["policy.reward"] = POLICY[:, 1]
P, Q = special.softmax(POLICY.astype(np.float64), -1), special.softmax(REF, -1)
ORACLE = {
  "LOGP": np.log(P[np.arange(4), TARGET]),
  "REF_LOGP": np.log(Q[np.arange(4), TARGET]),
  "REST_LOGP": np.log(1 - P[np.arange(4), TARGET]),
  "VALUE": POLICY[:, 0],
  "REWARD_HEAD": POLICY[:, 1],
  "ENTROPY": scipy_stats.entropy(P, axis=-1),
  "REF_KL": scipy_stats.entropy(Q, P, axis=-1),
  "POLICY_KL": scipy_stats.entropy(P, Q, axis=-1),
  "TEACHER_LOGP": np.log(Q[np.arange(4), TARGET]),
  "TEACHER_KL": scipy_stats.entropy(Q, P, axis=-1),
  "POLICY_TEACHER_KL": scipy_stats.entropy(P, Q, axis=-1),
}
TEACHER = {"teacher_logp_BKT", "teacher_kl_BKT", "policy_teacher_kl_BKT"}


@pytest.mark.parametrize("name", ORACLE)
def test_matches_scipy(name):
  stat = getattr(token_stats, name)
  roles = {role: jnp.asarray(ROLES[role]) for role in stat.roles}  # no other is read
  actual = stat.fn(roles, jnp.asarray(TARGET))
  np.testing.assert_allclose(actual, ORACLE[name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ORACLE)
def test_any_number_of_leading_axes(name):
  stat = getattr(token_stats, name)
  roles = {role: jnp.asarray(ROLES[role]) for role in stat.roles}
  flat = stat.fn(roles, jnp.asarray(TARGET))
  roles = {role: x.reshape(2, 2, *x.shape[1:]) for role, x in roles.items()}
  np.testing.assert_allclose(
    stat.fn(roles, TARGET.reshape(2, 2)).reshape(4), flat, 1e-6
  )


def test_soft_cap_is_on_the_logits_of_its_roles_alone():
  stat = token_stats.capped(token_stats.REF_KL, (("policy", 1.5),))
  roles = {"policy": jnp.asarray(POLICY), "ref": jnp.asarray(REF)}
  p = special.softmax(1.5 * np.tanh(POLICY.astype(np.float64) / 1.5), -1)
  expected = scipy_stats.entropy(Q, p, axis=-1)
  actual = stat.fn(roles, jnp.asarray(TARGET))
  np.testing.assert_allclose(actual, expected, rtol=2e-5)
  assert token_stats.capped(token_stats.REF_KL, ()) is token_stats.REF_KL


def test_statistics_without_a_field_go_to_extra():
  fields = {getattr(token_stats, name).field for name in ORACLE}
  extra = fields - set(Scored.__dataclass_fields__)
  assert len(fields) == len(ORACLE)
  assert extra == {"entropy_BKT", "policy_kl_BKT", "rest_logp_BKT"} | TEACHER


def test_impossible_tokens_add_0():
  logits = jnp.array([[0.0, 0.0, -jnp.inf]])
  other = jnp.array([[0.0, jnp.log(3.0), -jnp.inf]])
  assert token_stats.entropy(logits)[0] == pytest.approx(np.log(2))
  expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
  assert token_stats.kl(logits, other)[0] == pytest.approx(expected, rel=1e-5)
  for function in (token_stats.entropy, lambda x: token_stats.kl(x, other)):
    assert np.isfinite(jax.grad(lambda x, f=function: f(x).sum())(logits)).all()


def test_underflowing_probability_gives_a_finite_kl():
  p = jnp.array([[0.0, -500.0]])
  q = jnp.array([[-500.0, 0.0]])
  assert token_stats.kl(p, q)[0] == pytest.approx(500.0)


@pytest.mark.parametrize("b", [0.1, 0.5, 0.9])
def test_jsd_matches_scipy_and_is_symmetric_in_roles_and_weight(b):
  mixture = b * Q + (1 - b) * P
  expected = b * scipy_stats.entropy(Q, mixture, axis=-1)
  expected += (1 - b) * scipy_stats.entropy(P, mixture, axis=-1)
  roles = {"policy": jnp.asarray(POLICY), "teacher": jnp.asarray(REF)}
  actual = token_stats.teacher_jsd(b).fn(roles, TARGET)
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(token_stats.jsd(POLICY, REF, 1 - b), actual, rtol=1e-5)
  assert (np.asarray(actual) < np.log(2)).all()


def test_jsd_at_its_ends_is_one_of_the_two_kls():
  assert token_stats.teacher_jsd(0.0) is token_stats.TEACHER_KL
  assert token_stats.teacher_jsd(1.0) is token_stats.POLICY_TEACHER_KL
  assert token_stats.teacher_jsd(0.3) is token_stats.teacher_jsd(0.3)
  assert token_stats.teacher_jsd(0.3).field != token_stats.teacher_jsd(0.31).field
  for b in (-0.1, 1.1, float("nan")):
    with pytest.raises(ValueError, match=f"interpolation={b}; allowed: 0"):
      token_stats.teacher_jsd(b)


def test_jsd_and_its_gradient_are_finite_where_tokens_are_impossible():
  policy = jnp.array([[0.0, 1.0, -jnp.inf, -jnp.inf], [0.0, -900.0, 0.0, 0.0]])
  teacher = jnp.array([[0.0, -jnp.inf, 2.0, -jnp.inf], [-900.0, 0.0, 0.0, 0.0]])
  p, q = special.softmax(np.float64(policy), -1), special.softmax(teacher, -1)
  value, slope = jax.vmap(
    jax.value_and_grad(lambda x, y: token_stats.jsd(y, x, 0.3), argnums=0)
  )(policy, teacher)
  mixture = 0.3 * q + 0.7 * p
  expected = 0.3 * special.rel_entr(q, mixture) + 0.7 * special.rel_entr(p, mixture)
  np.testing.assert_allclose(value, expected.sum(-1), rtol=1e-5)
  # d D / d p = (1 - b) log(p / m), centred, times p.
  with np.errstate(divide="ignore", invalid="ignore"):
    each = np.where(p > 0, 0.7 * np.log(p / mixture), 0)
  expected = p * (each - (p * each).sum(-1, keepdims=True))
  np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_log_mixture_is_the_log_of_the_weighted_sum():
  p, q = jnp.array([0.2, 0.0, 1.0, 0.0]), jnp.array([0.5, 0.25, 0.0, 0.0])
  for share in (0.0, 0.25, 1.0):
    mixed = token_stats.log_mixture(jnp.log(p), jnp.log(q), share)
    np.testing.assert_allclose(
      np.exp(mixed), (1 - share) * p + share * q, rtol=1e-5, atol=0
    )


def test_target_is_selected_without_a_gather():
  hlo = jax.jit(token_stats.logp).lower(POLICY, TARGET).as_text()
  assert "gather" not in hlo


def test_rest_of_a_certain_token_is_finite():
  logits, target = jnp.array([[0.0, -300.0, -200.0]]), jnp.array([0])
  rest, slope = jax.value_and_grad(lambda x: token_stats.rest_logp(x, target)[0])(
    logits
  )
  assert rest == pytest.approx(-200.0)
  # d log(1 - p) / d logits = softmax of the others - softmax
  np.testing.assert_allclose(slope, [[-1.0, 0.0, 1.0]], atol=1e-6)


def test_contrast_tokens_are_the_largest_other_logits_and_the_target_last():
  logits = jnp.array([[3.0, 1.0, 2.0, 0.0], [3.0, 1.0, 2.0, 0.0]])
  target = jnp.array([0, 1])  # the largest itself, and another
  actual = token_stats.contrast_tokens(2).fn({"policy": logits}, target)
  np.testing.assert_array_equal(actual, [[2.0, 1.0, 3.0], [3.0, 2.0, 1.0]])
  _, ids = token_stats.top_contrast_tokens(logits, target, 2)
  np.testing.assert_array_equal(ids, [[2, 1], [0, 2]])


def test_equal_contrast_tokens_are_one_statistic():
  assert token_stats.contrast_tokens(2) is token_stats.contrast_tokens(2)
  assert token_stats.contrast_tokens(2).field != token_stats.contrast_tokens(3).field


@pytest.mark.parametrize("k", [0, 1.0, -1])
def test_number_of_contrast_tokens_is_a_positive_integer(k):
  with pytest.raises(ValueError, match=rf"k={k} must be a whole number >= 1"):
    token_stats.contrast_tokens(k)


def test_vocabulary_without_enough_contrast_tokens_is_refused():
  with pytest.raises(ValueError, match="need a vocabulary > 6, this is 6"):
    token_stats.top_contrast_tokens(POLICY, TARGET, 6)


def test_tempered_is_the_statistic_of_divided_logits():
  logits_CV = jnp.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
  target_C = jnp.array([2, 0])
  cool = token_stats.tempered(token_stats.LOGP, 0.5)
  p_CV = np.exp(np.asarray(logits_CV, np.float64) / 0.5)
  expected = np.log(p_CV[[0, 1], [2, 0]] / p_CV.sum(1))
  np.testing.assert_allclose(cool.fn({"policy": logits_CV}, target_C), expected, 1e-5)


def test_tempered_keeps_values_temperature_1_and_equal_statistics():
  value = token_stats.tempered(token_stats.VALUE, 0.5)
  assert value.fn({"policy.value": jnp.array([3.0])}, None).tolist() == [3.0]
  head = token_stats.tempered(token_stats.REWARD_HEAD, 0.5)
  assert head.fn({"policy.reward": jnp.array([3.0])}, None).tolist() == [3.0]
  assert token_stats.tempered(token_stats.LOGP, 1.0) is token_stats.LOGP
  assert token_stats.tempered(token_stats.LOGP, 0.7) is token_stats.tempered(
    token_stats.LOGP, 0.7
  )
  with pytest.raises(ValueError, match="temperature=0"):
    token_stats.tempered(token_stats.LOGP, 0.0)
