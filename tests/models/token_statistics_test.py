"""Tests the chunked token statistics: gradient, memory, dtypes."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from xpo_jax.models import score
from xpo_jax.ops import token_stats
from xpo_jax.types import TokenStat


def _random(shapes, seed=1):
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def test_token_statistics_gradient_is_numerical_gradient():
  target_RC = jnp.array([[1, 4, 0], [2, 2, 3]])
  ref_hidden, ref_head = _random([(2, 3, 4), (5, 4)], seed=2)

  def total(hidden, head, value):
    out = score.token_statistics(
      {"policy": hidden, "ref": ref_hidden},
      {"policy": head, "ref": ref_head},
      target_RC,
      (token_stats.LOGP, token_stats.REF_KL, token_stats.VALUE),
      values={"policy.value": value},
      chunk=2,
    )
    # Distinct cotangents per token and scales per field.
    return sum((i + 1) * jnp.sin(x).sum() for i, x in enumerate(out.values()))

  args = _random([(2, 3, 4), (5, 4), (2, 3)])
  jax.test_util.check_grads(
    jax.jit(total), args, order=1, modes=("rev",), atol=1e-2, rtol=1e-2, eps=1e-2
  )


def test_token_statistics_has_no_gradient_for_frozen_roles():
  hidden, head = _random([(1, 3, 4), (5, 4)])
  target = jnp.array([[0, 1, 2]])

  def total(ref_hidden, ref_head):
    return score.token_statistics(
      {"policy": hidden, "ref": ref_hidden},
      {"policy": head, "ref": ref_head},
      target,
      (token_stats.REF_KL,),
      chunk=2,
    )["ref_kl_BKT"].sum()

  for x in jax.jit(jax.grad(total, (0, 1)))(hidden, 2 * head):
    np.testing.assert_array_equal(x, 0)


def _top2(roles, target_C):
  del target_C
  return jax.lax.top_k(roles["policy"], 2)[0]


def test_token_statistics_supports_trailing_axes():
  hidden, head = _random([(2, 5, 4), (7, 4)])
  out = score.token_statistics(
    {"policy": hidden},
    {"policy": head},
    jnp.zeros((2, 5), jnp.int32),
    (TokenStat("top2_BKT", ("policy",), _top2),),
    chunk=2,
  )["top2_BKT"]
  expected = np.sort(np.asarray(hidden) @ np.asarray(head).T, -1)[..., ::-1][..., :2]
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_token_statistics_in_bfloat16_sums_head_gradient_in_float32():
  # Every token adds the same d = p_0 * hidden to the gradient of row 0; summed in
  # bfloat16, 4096 of them would stall once the sum is 256 times one summand.
  tokens = 4096
  hidden = jnp.ones((1, tokens, 1), jnp.bfloat16)
  head = jnp.zeros((2, 1), jnp.bfloat16)

  def total(head):
    out = score.token_statistics(
      {"policy": hidden},
      {"policy": head},
      jnp.ones((1, tokens), jnp.int32),
      (token_stats.LOGP,),
      chunk=1,
    )["logp_BKT"]
    return out.sum(), out

  (_, logp_RC), d_head = jax.jit(jax.value_and_grad(total, has_aux=True))(head)
  assert logp_RC.dtype == jnp.float32 and d_head.dtype == jnp.bfloat16
  # d log p(1) / d logit = (-1/2, 1/2) at equal logits.
  np.testing.assert_array_equal(d_head.astype(np.float32)[:, 0], [-2048, 2048])


def test_token_statistics_raises_on_missing_roles_and_invalid_arguments():
  hidden, head = _random([(1, 3, 4), (5, 4)])
  target = jnp.zeros((1, 3), jnp.int32)
  call = functools.partial(
    score.token_statistics, {"policy": hidden}, {"policy": head}, target
  )
  with pytest.raises(ValueError, match=r"pass \['ref'\] too"):
    call((token_stats.REF_LOGP,))
  with pytest.raises(ValueError, match="chunk=0"):
    call((token_stats.LOGP,), chunk=0)
  with pytest.raises(ValueError, match="share a field"):
    call((token_stats.LOGP, token_stats.LOGP._replace(roles=("policy", "policy"))))


@pytest.mark.parametrize(
  "stats", [(token_stats.LOGP,), (token_stats.LOGP, token_stats.REF_KL)]
)
def test_token_statistics_uses_under_a_tenth_of_the_memory_of_logits(stats):
  # The bench: 2048 tokens, vocabulary 16,384, width 256, value and gradient.
  R, C, V, D = 8, 256, 16_384, 256

  def loss(policy, ref, target):
    hidden, head = zip(policy, ref, strict=True)
    out = score.token_statistics(
      dict(zip(("policy", "ref"), hidden, strict=True)),
      dict(zip(("policy", "ref"), head, strict=True)),
      target,
      stats,
    )
    return sum(jnp.sin(x).sum() for x in out.values())

  model = (
    jax.ShapeDtypeStruct((R, C, D), "float32"),
    jax.ShapeDtypeStruct((V, D), "float32"),
  )
  target = jax.ShapeDtypeStruct((R, C), "int32")
  compiled = jax.jit(jax.value_and_grad(loss)).lower(model, model, target).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < R * C * V * 4 / 10


def test_a_large_vocabulary_is_read_by_blocks():
  assert score.block_length(2048, 16_384, on_cpu=True) == score.CPU_BLOCK
  assert score.block_length(2048, 16_384, on_cpu=False) == score.BLOCK
  assert score.block_length(128, 16_384, on_cpu=True) is None  # 8 MiB of logits
  assert score.block_length(1 << 20, 600, on_cpu=True) is None


def test_chunk_length_stays_within_budget_and_capacity():
  sizes = [(8, 256, 16_384, 256), (64, 40, 600, 64), (2, 4096, 128_256, 4096)]
  for rows, capacity, vocab, width in sizes:
    chunk = score.chunk_length(rows, capacity, vocab, width)
    assert 1 <= chunk <= capacity
    logits, head = 4 * rows * chunk * vocab, 4 * vocab * width
    assert logits <= max(score.BUDGET, head / 2)
    # Nearly equal chunks: less than one token of padding per chunk.
    assert -capacity % chunk < -(-capacity // chunk)
  assert score.chunk_length(8, 40, 600, 64) == 40
  assert score.chunk_length(500, 40, 600, 64) < 40


def _largest(jaxpr) -> int:
  """Elements of the largest array that a program makes, those of its parts too."""
  sizes = [0]
  for equation in jaxpr.eqns:
    sizes += [variable.aval.size for variable in equation.outvars]
    for inner in jax.core.jaxprs_in_params(equation.params):
      sizes.append(_largest(inner))
  return max(sizes)


def test_divergence_to_a_teacher_makes_no_array_of_tokens_by_vocabulary():
  # A teacher of another width; one chunk of 4 of the 32 positions of 2 rows at a time.
  R, C, V, chunk = 2, 32, 512, 4
  target_RC = jnp.zeros((R, C), jnp.int32)
  policy, teacher = ((R, C, 4), (V, 4)), ((R, C, 6), (V, 6))

  def loss(policy, teacher, chunk):
    (hidden, head), (teacher_hidden, teacher_head) = policy, teacher
    out = score.token_statistics(
      {"policy": hidden, "teacher": teacher_hidden},
      {"policy": head, "teacher": teacher_head},
      target_RC,
      (token_stats.teacher_jsd(0.5),),
      chunk=chunk,
    )
    return out["teacher_jsd_0.5_BKT"].sum()

  shapes = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, "float32"),
    (policy, teacher),
    is_leaf=lambda x: isinstance(x[0], int),
  )

  def largest(chunk):
    grad = jax.value_and_grad(functools.partial(loss, chunk=chunk))
    return _largest(jax.make_jaxpr(grad)(*shapes).jaxpr)

  assert largest(C) == R * C * V  # the whole batch in one chunk: the test can fail
  assert largest(chunk) == R * chunk * V
