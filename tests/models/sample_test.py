import dataclasses
import functools
import re

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.models import kv_cache, sample, transformer
from xpo_jax.models.config import Activation, Config, Norm
from xpo_jax.models.generation_config import GenerationConfig, Mixture
from xpo_jax.sharding import mesh as meshes

# 150 tokens: more than one block of the two-step draw, and not a whole number.
LLAMA = Config(
  vocab=150,
  width=16,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_width=24,
  windows=(4, 0),
  logit_softcap=6.0,
)
GPT2 = dataclasses.replace(
  LLAMA,
  kv_heads=4,
  windows=(),
  logit_softcap=None,
  positions=12,
  norm=Norm.LAYER,
  activation=Activation.GELU_TANH,
  gated=False,
  rotary=None,
  qkv_bias=True,
  output_bias=True,
  mlp_bias=True,
  tied=True,
)
PROMPTS = [[5, 6, 7], [9], [140, 3], [1, 2, 3, 4, 5]]
STOP = [11, 12, *range(100, 125)]
K, T = 3, 6
TRUNCATED = dict(temperature=0.7, top_k=20, top_p=0.8)


@functools.cache
def params(config, seed=0):
  """Random parameters, large enough that the next token is far from uniform."""
  start = jax.jit(transformer.model(config).init)(jax.random.key(seed))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + 0.25 * rng.standard_normal(x.shape, np.float32), start
  )


def draw(
  config=LLAMA,
  prompts=PROMPTS,
  rows=(0, 1, 2, 3),
  width=5,
  weights=None,
  key=7,
  **changes,
):
  options = dict(completions=K, max_completion_tokens=T, stop_ids=STOP)
  drawn = sample.sample(
    transformer.model(config),
    params(config) if weights is None else weights,
    sample.PromptBatch(*sample.pad(prompts, width), np.asarray(rows)),
    config=GenerationConfig(**options | changes),
    key=jax.random.key(key),
  )
  return jax.tree.map(np.asarray, drawn)


@functools.cache
def truncated(config=LLAMA):
  return draw(config, **TRUNCATED)


@functools.cache
def rescored(config):
  """Logits `[B, K, T, V]` of `truncated`, by whole rows."""
  return logits_of(truncated(config), config)


def capped(logits):
  return 6 * jnp.tanh(logits / 6)


def logits_of(drawn, config, seed=0):
  model = transformer.model(config)
  texts = [
    prompt + list(drawn.tokens_BKT[b, k, : drawn.length_BK[b, k]])
    for b, prompt in enumerate(PROMPTS)
    for k in range(K)
  ]
  tokens_RL, length_R = sample.pad(texts, 5 + T)
  rows = transformer.Rows.plain(tokens_RL, np.arange(5 + T) < length_R[:, None])
  logits = jax.jit(lambda p: model.hidden(p, rows) @ model.head(p).T)
  logits = np.asarray(logits(params(config, seed)))
  if config is LLAMA:
    logits = capped(logits)
  logits_BKTV = np.zeros((len(PROMPTS), K, T, config.vocab), np.float32)
  for b, prompt in enumerate(PROMPTS):
    for k in range(K):
      start = len(prompt) - 1
      logits_BKTV[b, k] = logits[b * K + k, start : start + T]
  return logits_BKTV


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_logp_equals_rescoring_at_the_sampling_temperature(config):
  drawn = truncated(config)
  logp_BKTV = jax.nn.log_softmax(rescored(config) / 0.7)
  at = drawn.tokens_BKT[..., None]
  logp_BKT = np.take_along_axis(logp_BKTV, at, -1)[..., 0] * drawn.mask_BKT
  np.testing.assert_allclose(drawn.logp_BKT, logp_BKT, atol=1e-5, rtol=0)


def test_proposal_logp_is_that_of_the_truncated_distribution():
  drawn = truncated()
  p_BKTV = np.asarray(jax.nn.softmax(rescored(LLAMA) / 0.7))
  for b, k, t in np.argwhere(drawn.mask_BKT):
    p, token = p_BKTV[b, k, t], drawn.tokens_BKT[b, k, t]
    falling = np.argsort(-p)[:20]  # top_k, then top_p among what is left
    q = p[falling] / p[falling].sum()
    count = int(np.searchsorted(np.cumsum(q), 0.8)) + 1
    assert token in falling[:count]
    expected = np.log(p[token] / p[falling[:count]].sum())
    assert abs(drawn.proposal_logp_BKT[b, k, t] - expected) < 1e-5


def test_text_does_not_depend_on_how_the_batch_is_cut_or_padded():
  whole = truncated()
  wide = draw(width=9, **TRUNCATED)
  np.testing.assert_array_equal(wide.tokens_BKT, whole.tokens_BKT)
  for b, prompt in enumerate(PROMPTS):
    alone = draw(prompts=[prompt], rows=[b], **TRUNCATED)
    np.testing.assert_array_equal(alone.tokens_BKT[0], whole.tokens_BKT[b])
    np.testing.assert_allclose(alone.logp_BKT[0], whole.logp_BKT[b], atol=1e-5)


def test_key_row_and_completion_each_change_the_text():
  tokens = truncated().tokens_BKT
  other_key = draw(key=8, **TRUNCATED).tokens_BKT
  other_row = draw(rows=(4, 5, 6, 7), **TRUNCATED).tokens_BKT
  assert (other_key != tokens).any() and (other_row != tokens).any()
  assert (tokens[:, 0] != tokens[:, 1]).any()


def test_longer_limit_only_adds_text():
  short, long = draw(max_completion_tokens=4, **TRUNCATED), truncated()
  np.testing.assert_array_equal(short.tokens_BKT, long.tokens_BKT[:, :, :4])


def test_mask_covers_the_completion_with_its_stop_token_and_nothing_after():
  drawn = truncated()
  assert drawn.ended_BK.any() and not drawn.ended_BK.all()  # both kinds are seen
  for b, k in np.ndindex(drawn.ended_BK.shape):
    tokens, length = drawn.tokens_BKT[b, k], drawn.length_BK[b, k]
    stops = np.isin(tokens[:length], STOP)
    assert not stops[:-1].any() and stops[-1] == drawn.ended_BK[b, k]
    assert drawn.ended_BK[b, k] or length == T
    np.testing.assert_array_equal(drawn.mask_BKT[b, k], np.arange(T) < length)
    for x in (drawn.tokens_BKT, drawn.logp_BKT, drawn.proposal_logp_BKT):
      assert not x[b, k, length:].any()


def test_greedy_takes_the_likeliest_token_of_the_whole_row():
  drawn = draw(completions=1, greedy=True, stop_ids=())
  model = transformer.model(LLAMA)

  @jax.jit
  def logits(tokens_RL, mask_RL):
    rows = transformer.Rows.plain(tokens_RL, mask_RL)
    return capped(model.hidden(params(LLAMA), rows) @ model.head(params(LLAMA)).T)

  texts = [list(prompt) for prompt in PROMPTS]
  for _ in range(T):
    tokens_RL, length_R = sample.pad(texts, 5 + T)
    out = logits(tokens_RL, np.arange(5 + T) < length_R[:, None])
    for text, row in zip(texts, np.asarray(out), strict=True):
      text.append(int(row[len(text) - 1].argmax()))
  expected = [t[len(p) :] for t, p in zip(texts, PROMPTS, strict=True)]
  np.testing.assert_array_equal(drawn.tokens_BKT[:, 0], expected)
  assert not drawn.ended_BK.any() and not drawn.proposal_logp_BKT.any()
  # The smallest nucleus holds one token: the same text, with certainty.
  narrow = draw(stop_ids=STOP, **TRUNCATED | {"top_p": 1e-6})
  for k in range(K):
    kept = narrow.mask_BKT[:, k] == 1
    np.testing.assert_array_equal(
      narrow.tokens_BKT[:, k][kept], drawn.tokens_BKT[:, 0][kept]
    )
  np.testing.assert_allclose(narrow.proposal_logp_BKT, 0, atol=1e-6)


def test_draws_follow_the_distribution():
  # 20 000 draws of one next token: Pearson's chi-squared over 150 tokens.
  model, count = transformer.model(LLAMA), 20_000
  drawn = draw(
    prompts=PROMPTS[:1], rows=[0], completions=count, max_completion_tokens=1
  )
  rows = transformer.Rows.plain(np.array([PROMPTS[0]]), np.ones((1, 3)))
  hidden = jax.jit(model.hidden)(params(LLAMA), rows)[0, -1]
  logits_V = capped(model.head(params(LLAMA)) @ hidden)
  p_V = np.asarray(jax.nn.softmax(logits_V), np.float64)
  seen_V = np.bincount(drawn.tokens_BKT[0, :, 0], minlength=150)
  rare = p_V * count < 5  # pooled, as the approximation needs five expected each
  observed = np.append(seen_V[~rare], seen_V[rare].sum())
  expected = np.append(p_V[~rare], p_V[rare].sum()) * count
  chi2 = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
  degrees = len(p_V) - rare.sum()
  assert degrees > 20
  assert abs(chi2 - degrees) < 5 * np.sqrt(2 * degrees)


def mixed(share, arithmetic=False, **changes):
  other = transformer.model(LLAMA), params(LLAMA, 1)
  reference = Mixture(*other, share, arithmetic)
  return draw(mixture=reference, temperature=0.7, **changes)


def test_mixture_draws_from_the_geometric_mean_and_keeps_the_policys_log_prob():
  drawn = mixed(0.4)
  at = drawn.tokens_BKT[..., None]
  policy, ref = (logits_of(drawn, LLAMA, seed) / 0.7 for seed in (0, 1))
  mean = 0.6 * jax.nn.log_softmax(policy) + 0.4 * jax.nn.log_softmax(ref)
  for ours, logits in ((drawn.logp_BKT, policy), (drawn.proposal_logp_BKT, mean)):
    logp_BKT = np.take_along_axis(jax.nn.log_softmax(logits), at, -1)[..., 0]
    np.testing.assert_allclose(ours, logp_BKT * drawn.mask_BKT, atol=1e-5, rtol=0)


def test_arithmetic_mixture_draws_from_the_weighted_sum():
  drawn = mixed(0.4, arithmetic=True)
  at = drawn.tokens_BKT[..., None]
  policy, ref = (logits_of(drawn, LLAMA, seed) / 0.7 for seed in (0, 1))
  weighted = 0.6 * jax.nn.softmax(policy) + 0.4 * jax.nn.softmax(ref)
  own = jax.nn.log_softmax(policy)
  for ours, logp in (
    (drawn.logp_BKT, own),
    (drawn.proposal_logp_BKT, np.log(weighted)),
  ):
    logp_BKT = np.take_along_axis(logp, at, -1)[..., 0]
    np.testing.assert_allclose(ours, logp_BKT * drawn.mask_BKT, atol=1e-5, rtol=0)
  assert (drawn.tokens_BKT != mixed(0.4).tokens_BKT).any()


@pytest.mark.parametrize("arithmetic", [False, True])
def test_ends_of_the_mixture_are_the_policy_and_the_reference(arithmetic):
  policy = draw(temperature=0.7)
  ref = draw(temperature=0.7, weights=params(LLAMA, 1))
  for share, alone in ((0.0, policy), (1.0, ref)):
    drawn = mixed(share, arithmetic)
    np.testing.assert_array_equal(drawn.tokens_BKT, alone.tokens_BKT)
    np.testing.assert_allclose(drawn.proposal_logp_BKT, alone.logp_BKT, atol=1e-5)
  assert (policy.tokens_BKT != ref.tokens_BKT).any()


@pytest.mark.parametrize(
  ("config", "share", "words"),
  [
    (LLAMA, 1.1, r"mixture.share is 1.1; .* in \[0, 1\]"),
    (LLAMA, float("nan"), "mixture.share is nan"),
    (dataclasses.replace(LLAMA, vocab=151), 0.5, "reference has 151 tokens, .* 150"),
    ("their own", 0.5, r"needs a model of transformer\.model"),
    (dataclasses.replace(GPT2, positions=10), 0.5, "has 10 positions"),
  ],
)
def test_mixture_that_cannot_be_is_refused(config, share, words):
  model = transformer.model(LLAMA)._replace(config=config)
  with pytest.raises(ValueError, match=words):
    draw(mixture=Mixture(model, {}, share))


def test_exploration_draws_at_its_temperature_and_keeps_the_log_prob():
  drawn = draw(temperature=0.7, exploration_temperature=2.0)
  np.testing.assert_array_equal(drawn.tokens_BKT, draw(temperature=2.0).tokens_BKT)
  at, logits = drawn.tokens_BKT[..., None], logits_of(drawn, LLAMA)
  for ours, divisor in ((drawn.logp_BKT, 0.7), (drawn.proposal_logp_BKT, 2.0)):
    logp_BKTV = jax.nn.log_softmax(logits / divisor)
    logp_BKT = np.take_along_axis(logp_BKTV, at, -1)[..., 0]
    np.testing.assert_allclose(ours, logp_BKT * drawn.mask_BKT, atol=1e-5, rtol=0)


def test_decoding_ends_when_every_row_has_ended(monkeypatch):
  # Every token stops: the loop's body (one decode) must not run at all.
  ran = []
  decode = kv_cache.decode

  def watched(*args):
    jax.debug.callback(lambda: ran.append(1))
    return decode(*args)

  monkeypatch.setattr(kv_cache, "decode", watched)
  drawn = draw(completions=2, stop_ids=range(150))
  jax.effects_barrier()
  assert not ran and drawn.ended_BK.all() and (drawn.length_BK == 1).all()
  draw(completions=2, stop_ids=[149] * 150)
  jax.effects_barrier()
  assert ran  # the watch works


def equations(jaxpr) -> int:
  """Number of equations of a program, those of the programs within it included."""
  inner = jax.extend.core.jaxprs_in_params
  return sum(1 + sum(map(equations, inner(eqn.params))) for eqn in jaxpr.eqns)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_decode_step_does_not_grow_with_depth(config):
  def size(layers):
    windows = config.windows and (layers // 2) * config.windows
    deep = dataclasses.replace(config, layers=layers, windows=windows)
    token_BK = jnp.zeros((2, K), jnp.int32)

    def step(params, prompt_BP, length_B):
      _, prompts = kv_cache.prefill(deep, params, prompt_BP, length_B)
      branches = kv_cache.branches(prompts, K, T)
      return kv_cache.decode(deep, params, token_BK, token_BK, prompts, branches)

    shapes = jax.eval_shape(transformer.model(deep).init, jax.random.key(0))
    traced = jax.make_jaxpr(step)(
      shapes, jnp.ones((2, 5), jnp.int32), jnp.ones(2, jnp.int32)
    )
    return equations(traced.jaxpr)

  assert size(2) == size(6) > 100


def test_decode_step_copies_no_cache():
  """The compiled loop writes the completions' cache in place."""
  arrays = sample.PromptBatch(*sample.pad(PROMPTS, 5), np.arange(4))
  config = GenerationConfig(T, completions=K, stop_ids=STOP)
  decoder, arrays = sample.prepare(
    transformer.model(LLAMA), params(LLAMA), arrays, config=config
  )
  lowered = sample.decode.lower(
    decoder,
    arrays.prompt_BP,
    arrays.length_B,
    jax.random.key(0),
    arrays.row_B,
    completions=K,
    max_completion_tokens=T,
  )
  shape = (LLAMA.layers, len(PROMPTS), K, LLAMA.kv_heads, T, LLAMA.head_dim)
  text = lowered.compile().as_text()
  assert str(list(shape)).replace(" ", "") in text  # the cache is one array
  loops, _ = text.split("\nENTRY")
  moved = re.findall(r"= f32\[([\d,]+)\]\S* (?:copy|transpose)\(", loops)
  sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in moved]
  assert sizes and np.prod(shape) not in sizes


def test_layout_of_caches_on_tpus_changes_no_number(monkeypatch):
  """Two steps of decoding, the caches laid out as on a TPU."""
  prompt_BP, length_B = jnp.asarray([[5, 6, 7], [9, 1, 1]]), jnp.asarray([3, 1])
  token_BK = jnp.asarray([[11, 12, 13], [14, 15, 16]])

  def two_steps(params, token_BK):
    _, prompts = kv_cache.prefill(LLAMA, params, prompt_BP, length_B)
    caches, hidden = kv_cache.branches(prompts, K, T), []
    for n in range(2):
      at_BK = jnp.full_like(token_BK, n)
      x, caches = kv_cache.decode(LLAMA, params, token_BK + n, at_BK, prompts, caches)
      hidden.append(x)
    return hidden, caches

  expected = jax.jit(two_steps)(params(LLAMA), token_BK)
  monkeypatch.setattr(meshes, "platform", lambda mesh: "tpu")
  laid_out = jax.jit(lambda *x: two_steps(*x))
  text = laid_out.lower(params(LLAMA), token_BK).as_text()
  assert "LayoutConstraint" in text
  ours = laid_out(params(LLAMA), token_BK)
  for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_calls_of_one_shape_compile_once():
  truncated()
  before = sample.decode._cache_size()
  changed = {"temperature": 1.3, "top_p": 0.5, "top_k": 7}
  draw(prompts=[[1], [2, 3], [4], [5]], rows=(8, 9, 10, 11), **changed)
  draw(key=9, stop_ids=list(range(len(STOP))), **changed)
  assert sample.decode._cache_size() == before


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"prompts": [[1], []], "rows": (0, 1)}, "prompt 1 is empty"),
    ({"prompts": [], "rows": ()}, "at least one prompt"),
    ({"prompts": [[1] * 6], "rows": (0,)}, "prompt 0 has 6 tokens, width is 5"),
    ({"prompts": [[150]], "rows": (0,)}, "prompt_BP holds id 150; allowed: 0 to 149"),
    ({"stop_ids": [-1]}, "stop_ids holds id -1"),
    ({"stop_ids": None}, r"stop_ids is None, .*\(\) for none"),
    ({"temperature": 0.0}, r"temperature is 0.0; .*greedy=True"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"top_p": 0.0}, "top_p is 0.0; allowed: 0 < top_p <= 1"),
    ({"top_p": 1.5}, "top_p is 1.5"),
    ({"top_k": 0}, "top_k is 0; allowed: 1 to 150"),
    ({"top_k": 151}, "top_k is 151"),
    ({"completions": 0}, "completions is 0"),
    ({"max_completion_tokens": 0}, "max_completion_tokens is 0"),
    ({"greedy": True, "top_k": 3}, "greedy=True takes one token"),
    (
      {"greedy": True, "exploration_temperature": 2.0},
      "exploration_temperature is 2.0, greedy is True",
    ),
    ({"exploration_temperature": 0.0}, "exploration_temperature is 0.0"),
    (
      {"config": GPT2, "max_completion_tokens": 8},
      r"is 13; this model has 12 positions",
    ),
    ({"rows": (0, 1)}, r"row_B has shape \(2,\); .* 4 prompts"),
  ],
)
def test_bad_input_is_refused_by_name_before_any_compile(changes, words):
  before = sample.decode._cache_size()
  with pytest.raises(ValueError, match=words):
    draw(**changes)
  assert sample.decode._cache_size() == before


def test_model_without_a_cache_is_refused():
  model = transformer.model(LLAMA)._replace(config="their own")
  with pytest.raises(ValueError, match=r"needs a model of transformer\.model"):
    sample.sample(
      model,
      {},
      sample.PromptBatch(np.ones((1, 1), int), np.ones(1, int), np.zeros(1, int)),
      config=GenerationConfig(1, stop_ids=()),
      key=jax.random.key(0),
    )
