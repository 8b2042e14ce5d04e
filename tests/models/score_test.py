"""Tests scoring of packed rows in chunks against one plain row per completion."""

import dataclasses
import functools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.models import score, transformer
from xpo_jax.ops import masked, token_stats

STATS = (
  token_stats.LOGP,
  token_stats.REF_LOGP,
  token_stats.REF_KL,
  token_stats.ENTROPY,
  token_stats.VALUE,
  token_stats.REWARD_HEAD,
)
VOCAB, WIDTH, LENGTH = 23, 8, 16
CONFIG = transformer.Config(
  vocab=VOCAB, width=WIDTH, layers=2, heads=2, kv_heads=1, head_dim=4, mlp_width=12
)
CONFIG = dataclasses.replace(CONFIG, logit_softcap=1.0)  # read by scoring too
# Lengths of (prompt, completion 0, completion 1) of each group, by row: two groups
# share the first row, the second holds one, and neither row is full.
GROUPS = (((3, 2, 4), (2, 1, 3)), ((4, 3, 2),))


@functools.cache
def _texts():
  """Lists row, start column, prompt and completions of each group."""
  rng = np.random.default_rng(0)
  texts = []
  for row, groups in enumerate(GROUPS):
    column = 0
    for lengths in groups:
      prompt, *completions = (rng.integers(1, VOCAB, n) for n in lengths)
      texts.append((row, column, prompt, completions))
      column += sum(lengths)
  return texts


def _packed():
  """Packs the texts into a microbatch, token by token."""
  R, L, C, B, K, T = 2, LENGTH, 11, 3, 2, 4
  int_RL = functools.partial(np.zeros, (R, L), np.int32)
  batch = SimpleNamespace(
    tokens_MRL=int_RL(),
    segment_MRL=int_RL(),
    branch_MRL=int_RL(),
    position_MRL=int_RL(),
    source_MRC=np.zeros((R, C), np.int32),
    target_MRC=np.zeros((R, C), np.int32),
    input_MRC=np.zeros((R, C), np.int32),
    valid_MRC=np.zeros((R, C), np.float32),
    index_MBKT=np.full((B, K, T), R * C, np.int32),
    mask_MBKT=np.zeros((B, K, T), np.float32),
    present_MBK=np.ones((B, K), np.float32),
    weight_MB=np.ones(B, np.float32),
    row_MB=np.arange(B, dtype=np.int32),
    fields={},
    ref={},
  )
  used, segment = [0] * R, [0] * R
  for b, (row, column, prompt, completions) in enumerate(_texts()):
    segment[row] += 1
    prompt_end = column + len(prompt) - 1
    pieces = [(0, 0, prompt)] + [
      (k + 1, len(prompt), completion) for k, completion in enumerate(completions)
    ]
    for branch, start, piece in pieces:
      for i, token in enumerate(piece):
        batch.tokens_MRL[row, column] = token
        batch.segment_MRL[row, column] = segment[row]
        batch.branch_MRL[row, column] = branch
        batch.position_MRL[row, column] = start + i
        if branch:
          c = used[row]
          batch.source_MRC[row, c] = prompt_end if i == 0 else column - 1
          batch.target_MRC[row, c] = token
          batch.input_MRC[row, c] = column
          batch.valid_MRC[row, c] = 1
          batch.index_MBKT[b, branch - 1, i] = row * C + c
          batch.mask_MBKT[b, branch - 1, i] = 1
          used[row] += 1
        column += 1
  return batch


@functools.cache
def _params():
  model = transformer.model(CONFIG)
  policy_key, ref_key, value_key = jax.random.split(jax.random.key(0), 3)

  @jax.jit
  def init(key):
    lm = model.init(key)
    # Scale to about one: peaked distributions, gradients well above rounding errors.
    return lm | {name: 30 * lm[name] for name in ("embedding", "head")}

  value = {"kernel_D": jax.random.normal(value_key, (WIDTH,)), "bias": jnp.float32(0.3)}
  return {
    "policy": {"lm": init(policy_key), "value": value},
    "ref": {"lm": init(ref_key)},
  }


def _score(policy, batch, stats=STATS, chunk=None):
  model = transformer.model(CONFIG)
  params = _params() | {"policy": policy}
  return score.score({"policy": model, "ref": model}, params, stats, batch, chunk=chunk)


def _total(fields):
  """A scalar whose gradient weights every field and token differently."""
  total = 0.0
  for i, name in enumerate(sorted(fields)):
    x_BKT = fields[name]
    weight_BKT = jnp.cos(i + jnp.arange(x_BKT.size, dtype=jnp.float32))
    total += (jnp.sin(x_BKT) * weight_BKT.reshape(x_BKT.shape)).sum()
  return total


def _packed_total(policy, batch, chunk=None):
  scored = _score(policy, SimpleNamespace(**batch), chunk=chunk)
  fields = {stat.field: _field(scored, stat.field) for stat in STATS}
  return _total(fields), fields


def _field(scored, name):
  return scored.extra[name] if name in scored.extra else vars(scored)[name]


def _plain_total(policy):
  """Each completion after its own copy of the prompt, all logits at once."""
  K, T = 2, 4
  texts = [(p, y) for _, _, p, completions in _texts() for y in completions]
  tokens, mask = np.zeros((2, len(texts), LENGTH), np.int32)
  source, target, valid = np.zeros((3, len(texts), T), np.int32)
  for n, (prompt, completion) in enumerate(texts):
    end = len(prompt) + len(completion)
    tokens[n, :end] = np.concatenate([prompt, completion])
    mask[n, :end] = 1
    t = np.arange(len(completion))
    source[n, t], target[n, t], valid[n, t] = len(prompt) - 1 + t, completion, 1
  rows = transformer.Rows.plain(tokens, mask)
  model = transformer.model(CONFIG)

  def outputs(params):
    hidden = model.hidden(params["lm"], rows)
    logits = jnp.tanh(hidden @ model.head(params["lm"]).T)
    return hidden, jax.nn.log_softmax(logits)

  n = np.arange(len(texts))[:, None]
  hidden, logp = outputs(policy)
  _, ref_logp = outputs(_params()["ref"])
  value = hidden @ policy["value"]["kernel_D"] + policy["value"]["bias"]
  logp, ref_logp = logp[n, source], ref_logp[n, source]
  fields = {
    "logp_BKT": jnp.take_along_axis(logp, target[..., None], -1)[..., 0],
    "ref_logp_BKT": jnp.take_along_axis(ref_logp, target[..., None], -1)[..., 0],
    "ref_kl_BKT": (jnp.exp(ref_logp) * (ref_logp - logp)).sum(-1),
    "entropy_BKT": -(jnp.exp(logp) * logp).sum(-1),
    "value_BKT": value[n, source],
    "reward_head_BKT": value[n, source + 1],
  }
  fields = {k: jnp.where(valid, x, 0).reshape(-1, K, T) for k, x in fields.items()}
  return _total(fields), fields


@pytest.fixture(scope="module")
def packed():
  return jax.jit(jax.value_and_grad(_packed_total, has_aux=True), static_argnums=2)


def test_score_equals_plain_unshared_unpacked_full_logits(packed):
  policy = _params()["policy"]
  (loss, fields), grad = packed(policy, vars(_packed()))
  plain = jax.jit(jax.value_and_grad(_plain_total, has_aux=True))
  (plain_loss, plain_fields), plain_grad = plain(policy)
  assert np.ptp(plain_fields["ref_kl_BKT"]) > 0.1  # the two models differ
  chex.assert_trees_all_close(fields, plain_fields, rtol=1e-5, atol=1e-5)
  chex.assert_trees_all_close(loss, plain_loss, rtol=1e-5)
  chex.assert_trees_all_close(grad, plain_grad, rtol=1e-5, atol=1e-5)


def test_score_in_chunks_equals_one_chunk(packed):
  # 4 does not divide C = 11: the last chunk is padded.
  policy, batch = _params()["policy"], vars(_packed())
  whole, chunked = packed(policy, batch), packed(policy, batch, 4)
  chex.assert_trees_all_close(chunked, whole, rtol=1e-5, atol=1e-5)


def test_score_does_not_depend_on_padding(packed):
  policy, clean, poisoned = _params()["policy"], _packed(), _packed()
  padding_RL, padding_RC = clean.segment_MRL == 0, clean.valid_MRC == 0
  assert padding_RL[:, -1].all() and padding_RC.any()
  poisoned.tokens_MRL[padding_RL] = VOCAB - 1
  poisoned.branch_MRL[padding_RL] = 1
  poisoned.position_MRL[padding_RL] = 77
  poisoned.source_MRC[padding_RC] = LENGTH - 1
  poisoned.input_MRC[padding_RC] = LENGTH - 1
  poisoned.target_MRC[padding_RC] = VOCAB - 1
  poisoned.ref["old_logp_BKT"] = np.full(poisoned.mask_MBKT.shape, 1e4, np.float32)
  chex.assert_trees_all_equal(
    packed(policy, vars(poisoned) | {"ref": {}}), packed(policy, vars(clean))
  )
  cached_BKT = _score(policy, poisoned, stats=(token_stats.VALUE,)).old_logp_BKT
  np.testing.assert_array_equal(cached_BKT, 1e4 * clean.mask_MBKT)


@pytest.mark.nonfinite
def test_score_of_nan_on_padding_stays_finite():
  model, batch = transformer.model(CONFIG), _packed()

  def hidden(scale, rows):
    states = scale * jnp.ones((*rows.tokens_RL.shape, WIDTH))
    return jnp.where(rows.segment_RL[..., None] == 0, jnp.nan, states)

  model = model._replace(
    hidden=hidden, head=lambda scale: scale * jnp.ones((VOCAB, WIDTH))
  )
  for index_MRC in (batch.source_MRC, batch.input_MRC):
    index_MRC[batch.valid_MRC == 0] = LENGTH - 1
  heads = {"kernel_D": jnp.zeros(WIDTH), "bias": jnp.float32(0)}

  def total(lm):
    stats = (token_stats.LOGP, token_stats.ENTROPY, token_stats.REWARD_HEAD)
    params = {"policy": {"lm": lm, "value": heads}}
    scored = score.score({"policy": model}, params, stats, batch)
    return scored.logp_BKT.sum() + scored.reward_head_BKT.sum()

  loss, grad = jax.jit(jax.value_and_grad(total))(jnp.float32(2.0))
  # Equal logits: the loss is log V per token for every parameter.
  np.testing.assert_allclose(loss, -batch.mask_MBKT.sum() * np.log(VOCAB), rtol=1e-6)
  np.testing.assert_allclose(grad, 0, atol=1e-3)


def test_score_of_values_computes_no_logits():
  policy, batch = _params()["policy"], _packed()

  def has_logits(stat):
    program = jax.make_jaxpr(lambda p: _score(p, batch, stats=(stat,)))(policy)
    return f",{VOCAB}]" in str(program)

  assert has_logits(token_stats.LOGP)
  assert not has_logits(token_stats.VALUE)
  assert not has_logits(token_stats.REWARD_HEAD)


def test_only_the_reward_head_tells_completions_apart_by_their_last_token():
  policy, batch, changed = _params()["policy"], _packed(), _packed()
  for (row, column, prompt, (first, *_)), b in zip(_texts(), range(3), strict=True):
    last = (row, column + len(prompt) + len(first) - 1)
    changed.tokens_MRL[last] = 1 + batch.tokens_MRL[last] % (VOCAB - 1)
    c = batch.index_MBKT[b, 0, len(first) - 1]
    changed.target_MRC.reshape(-1)[c] = changed.tokens_MRL[last]
  stats = (token_stats.VALUE, token_stats.REWARD_HEAD)
  before, after = (_score(policy, x, stats=stats) for x in (batch, changed))
  np.testing.assert_array_equal(before.value_BKT, after.value_BKT)
  moved_BKT = np.abs(before.reward_head_BKT - after.reward_head_BKT) > 1e-3
  np.testing.assert_array_equal(moved_BKT[:, 0].sum(-1), 1)  # at the last token alone
  np.testing.assert_array_equal(masked.last(moved_BKT, batch.mask_MBKT)[:, 0], 1)
  assert not moved_BKT[:, 1].any()


def test_score_uses_cached_reference_statistics():
  model, batch = transformer.model(CONFIG), _packed()
  batch.ref = {"ref_logp_BKT": np.full(batch.mask_MBKT.shape, -7.0, np.float32)}
  scored = score.score(
    {"policy": model},
    {"policy": _params()["policy"]},
    {token_stats.LOGP, token_stats.REF_LOGP},
    batch,
  )
  np.testing.assert_array_equal(scored.ref_logp_BKT, -7.0 * batch.mask_MBKT)


def test_score_raises_on_missing_role_or_value_head():
  model, policy = transformer.model(CONFIG), {"lm": _params()["policy"]["lm"]}
  with pytest.raises(ValueError, match=r"ref_logp_BKT reads the role 'ref'.*policy"):
    score.score(
      {"policy": model}, {"policy": policy}, (token_stats.REF_LOGP,), _packed()
    )
  with pytest.raises(ValueError, match=r"value_BKT reads a scalar head.*\['lm'\]"):
    score.score({"policy": model}, {"policy": policy}, (token_stats.VALUE,), _packed())
