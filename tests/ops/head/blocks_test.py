"""Reductions by blocks of the vocabulary, and statistics by them, and whole logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from xpo_jax.evaluation import lm_eval
from xpo_jax.models import score
from xpo_jax.objectives import _wpo
from xpo_jax.ops import token_stats
from xpo_jax.ops.head import blocks, reductions
from xpo_jax.sharding import mesh as meshes
from xpo_jax.types import TokenStat

R, C, V, D, BLOCK = 8, 3, 22, 6, 5  # the last block has two entries
NAMED = (getattr(token_stats, name) for name in sorted(dir(token_stats)))
STATS = (
  *(stat for stat in NAMED if isinstance(stat, TokenStat)),
  token_stats.contrast_tokens(3),
  token_stats.teacher_jsd(0.3),
  token_stats.tempered(token_stats.LOGP, 0.7)._replace(field="cool_logp_BKT"),
  token_stats.detached(token_stats.ENTROPY)._replace(field="reported_BKT"),
  _wpo.LOG_MEAN_PROB,
  lm_eval._GREEDY,
)


@functools.cache
def _inputs(dtype=jnp.float32):
  """Hidden states, heads and values; the teacher is of another width."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), dtype)

  widths = {"policy": D, "ref": D, "teacher": 2 * D}
  hidden = {role: draw(R, C, width) for role, width in widths.items()}
  head = {role: draw(V, width) for role, width in widths.items()}
  values = {"policy.value": draw(R, C), "policy.reward": draw(R, C)}
  return hidden, head, values, jnp.asarray(rng.integers(0, V, (R, C)), jnp.int32)


def _total(hidden, head, values, target_RC, stats=STATS, **how):
  """A scalar whose gradient weights all statistics and tokens differently."""
  softcaps = {"policy": 5.0, "ref": 4.0, "teacher": None}
  out = score.token_statistics(
    hidden, head, target_RC, stats, values=values, softcaps=softcaps, **how
  )
  total = 0.0
  for i, (_, x) in enumerate(sorted(out.items())):
    weight = jnp.cos(i + jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    total += (jnp.sin(x) * weight).sum()
  return total, out


def _gradient(**how):
  step = functools.partial(_total, **how)
  return jax.jit(jax.value_and_grad(step, (0, 1, 2), has_aux=True))


def test_temperatures_divide_logits_before_their_bound():
  bounded = token_stats.capped(token_stats.LOGP, (("policy", 2.0),))
  stat = token_stats.tempered(token_stats.tempered(bounded, 0.7), 0.5)
  hidden, head, values, target_RC = _inputs()
  no_caps = dict.fromkeys(hidden)
  whole, by_blocks = (
    score.token_statistics(
      hidden, head, target_RC, (stat,), values=values, softcaps=no_caps, **how
    )[stat.field]
    for how in ({"chunk": C}, {"block": BLOCK})
  )
  # What was bounded gets its logits divided, by both temperatures.
  divided = np.asarray(hidden["policy"]) @ np.asarray(head["policy"]).T / 0.35
  expected = special.log_softmax(2 * np.tanh(divided / 2), -1)
  expected = np.take_along_axis(expected, np.asarray(target_RC)[..., None], -1)[..., 0]
  np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(by_blocks, expected, rtol=1e-4, atol=1e-5)


def test_statistics_by_blocks_equal_those_of_whole_logits():
  assert len(STATS) == 17
  expected = _gradient(chunk=C)(*_inputs())
  actual = _gradient(block=BLOCK)(*_inputs())
  grad = expected[1]
  assert all(np.ptp(x) > 0.1 for x in (grad[0]["policy"], grad[1]["policy"]))
  for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_statistics_by_blocks_on_a_mesh_equal_those_on_one_device():
  # 11 entries on each of two devices: the second slice of a ring is padded.
  stats = (
    token_stats.LOGP,
    token_stats.REF_KL,
    token_stats.contrast_tokens(2),
    token_stats.teacher_jsd(0.3),
  )
  expected = _gradient(stats=stats, block=V)(*_inputs())
  mesh = meshes.make_mesh(2, 2, 2)
  actual = jax.device_get(_gradient(stats=stats, block=4, mesh=mesh)(*_inputs()))
  for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_gradients_have_the_dtype_of_hidden_states_and_head():
  stats = (token_stats.LOGP, token_stats.REF_KL)
  inputs = _inputs(jnp.bfloat16)
  (_, out), grad = _gradient(stats=stats, block=BLOCK)(*inputs)
  (_, whole), whole_grad = _gradient(stats=stats, chunk=C)(*inputs)
  assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}
  for x, y in zip(*map(jax.tree.leaves, (out, whole)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)  # products are the same
  for x, y in zip(*map(jax.tree.leaves, (grad, whole_grad)), strict=True):
    assert x.dtype == jnp.bfloat16
    x, y = np.float32(x), np.float32(y)
    np.testing.assert_allclose(x, y, rtol=2**-7, atol=2**-7 * np.abs(y).max())


def _of_logits(wanted, logits_CV, target_C, block):
  """Reductions of given logits: hidden states are these, the head is the identity."""
  out = blocks.reduce(
    {"policy": logits_CV[None]},
    {"policy": jnp.eye(logits_CV.shape[1])},
    target_C[None],
    wanted,
    trained=("policy",),
    block=block,
  )
  return [jax.tree.map(lambda x: x[0], out[one]) for one in wanted]


POLICY = reductions.Logits("policy")


def test_reductions_match_scipy():
  rng = np.random.default_rng(1)
  logits_CV = np.float32(3 * rng.standard_normal((4, 9)))
  target_C = np.array([0, 8, 3, 3], np.int32)
  others = reductions.LogSumExp(POLICY, others=True)
  square = reductions.LogSumExp(POLICY, power=2)
  mean = reductions.Mean(POLICY, (POLICY,), jnp.sin)
  surprise = reductions.LogProbMean(POLICY, (POLICY,), jnp.negative)
  top = reductions.Top(POLICY, 3, others=True)
  wanted = (reductions.Target(POLICY), others, square, mean, surprise, top)
  call = functools.partial(_of_logits, wanted, block=4)
  x, c = np.float64(logits_CV), np.arange(4)
  rest = x.copy()
  rest[c, target_C] = -np.inf
  p = special.softmax(x, -1)
  ids = np.argsort(-rest, -1)[:, :3]
  expected = [
    x[c, target_C],
    special.logsumexp(rest, -1),
    special.logsumexp(2 * x, -1),
    (p * np.sin(x)).sum(-1),
    special.entr(p).sum(-1),
    (np.take_along_axis(rest, ids, -1), ids),
  ]
  for actual, value in zip(jax.jit(call)(logits_CV, target_C), expected, strict=True):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5), actual, value
    )


def test_logits_far_apart_stay_finite():
  # The first block holds the target alone, the second underflows beside it.
  logits_CV = jnp.array([[0.0, -300.0, -200.0, -900.0]])
  target_C = jnp.array([0], jnp.int32)
  stats = (token_stats.REST_LOGP, token_stats.ENTROPY, token_stats.LOGP)

  def total(logits_CV):
    out = score.token_statistics(
      {"policy": logits_CV[None]},
      {"policy": jnp.eye(4)},
      target_C[None],
      stats,
      block=1,
    )
    return sum(x.sum() for x in out.values()), out

  (_, out), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(logits_CV)
  assert out["rest_logp_BKT"] == pytest.approx(-200.0)
  assert out["entropy_BKT"] == out["logp_BKT"] == 0
  np.testing.assert_allclose(slope, [[-1.0, 0.0, 1.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("mesh", [None, (1, 4, 2)], ids=str)
def test_kernels_equal_the_loop(mesh):
  # Neither 44 tokens nor 602 entries are whole tiles.
  rng = np.random.default_rng(2)
  ref, policy = reductions.Logits("ref"), reductions.Logits("policy", 3.0, 0.8)
  wanted = (
    reductions.Target(policy),
    reductions.LogSumExp(policy, others=True),
    reductions.Mean(policy, (policy, ref), jnp.subtract),
    reductions.Mean(ref, (ref, policy), jnp.subtract),
  )

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  hidden = {role: draw(4, 11, 128) for role in ("policy", "ref")}
  head = {role: draw(602, 128) / 8 for role in ("policy", "ref")}
  target_RC = jnp.asarray(rng.integers(0, 602, (4, 11)), jnp.int32)
  split = mesh and blocks.Split(
    meshes.make_mesh(*mesh), meshes.ROWS, ring="fsdp", vocab="tensor"
  )

  def total(hidden, head, **how):
    roles = {"trained": ("policy",), "block": 256} | how
    out = blocks.reduce(hidden, head, target_RC, wanted, **roles)
    return sum((i + 1) * jnp.sin(out[one]).sum() for i, one in enumerate(wanted)), [
      out[one] for one in wanted
    ]

  def gradient(**how):
    step = functools.partial(total, **how)
    return jax.device_get(
      jax.jit(jax.value_and_grad(step, (0, 1), has_aux=True))(hidden, head)
    )

  expected = gradient()
  actual = gradient(kernel=True, interpret=True, split=split)
  assert np.ptp(expected[1][0]["policy"]) > 0.5
  for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5)


def _largest(jaxpr) -> int:
  """Elements of the largest array that a program makes, those of its parts too."""
  sizes = [0]
  for equation in jaxpr.eqns:
    sizes += [variable.aval.size for variable in equation.outvars]
    for inner in jax.core.jaxprs_in_params(equation.params):
      sizes.append(_largest(inner))
  return max(sizes)


def test_no_array_of_tokens_by_vocabulary_is_made():
  shapes = jax.eval_shape(lambda: _inputs.__wrapped__())

  def largest(**how):
    step = jax.value_and_grad(functools.partial(_total, **how), (0, 1), has_aux=True)
    return _largest(jax.make_jaxpr(step)(*shapes).jaxpr)

  assert largest(chunk=C) == R * C * V
  assert largest(block=BLOCK) < R * C * V


def test_frozen_heads_and_detached_statistics_cost_no_backward_pass():
  def products(stats, of):
    def loss(policy):
      hidden, head = ({role: x[i] for role, x in policy.items()} for i in (0, 1))
      return _total(hidden, head, values, target_RC, stats, block=BLOCK)[0]

    hidden, head, values, target_RC = _inputs()
    policy = {role: (hidden[role], head[role]) for role in of}
    return str(jax.make_jaxpr(jax.grad(loss))(policy)).count("dot_general")

  # Two blocks are traced, that of the loop and the last one.
  logp = products((token_stats.LOGP,), ("policy",))
  assert logp == 2 * (1 + 3)
  both = (token_stats.LOGP, token_stats.REF_LOGP)
  assert products(both, ("policy", "ref")) == logp + 2
  detached = (token_stats.detached(token_stats.ENTROPY),)
  assert products(detached, ("policy",)) == 2


def test_bad_arguments_are_refused():
  hidden, head, values, target_RC = _inputs()

  def call(stats, hidden=hidden, head=head, **how):
    return score.token_statistics(hidden, head, target_RC, stats, values=values, **how)

  with pytest.raises(ValueError, match="block=0; it must be at least 1"):
    call((token_stats.LOGP,), block=0)
  with pytest.raises(ValueError, match="chunk=2 and block=2"):
    call((token_stats.LOGP,), chunk=2, block=2)
  with pytest.raises(
    ValueError, match="k=22 other tokens need a vocabulary of at least 23"
  ):
    call((token_stats.contrast_tokens(V),), block=2)
  whole = token_stats.LOGP._replace(reduced=None)
  with pytest.raises(ValueError, match=r"\['logp_BKT'\] are functions of all logits"):
    call((whole,), block=2)
  with pytest.raises(ValueError, match="heads of different vocabularies"):
    call((token_stats.REF_KL,), head=head | {"ref": head["ref"][1:]}, block=2)
