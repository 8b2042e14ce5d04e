"""Each model family against torch: fixtures of `fixtures/make_hf_fixtures.py`."""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from xpo_jax.config import optim
from xpo_jax.data.tokenise import Example
from xpo_jax.models import (
  continuous_batching,
  hf_checkpoint,
  hf_config,
  kv_cache,
  lora,
  sample,
  transformer,
)
from xpo_jax.models.config import ClampedSwiglu, Experts, Norm, Rotary
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.lora import Adapter
from xpo_jax.ops import capping
from xpo_jax.ops.experts import load_balance
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import place
from xpo_jax.train import loading
from xpo_jax.types import Layout

FIXTURES = Path(__file__).parent.parent / "fixtures"
FIXTURE_NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/expected.npz"))
# Set by `save` or by the installed version of transformers, or read by neither side.
IGNORED = {"bos_token_id", "eos_token_id", "pad_token_id", "dtype", "_name_or_path"}
IGNORED |= {"transformers_version", "max_window_layers", "torch_dtype", "rope_scaling"}
IGNORED |= {"rope_theta", "rope_local_base_freq", "use_cache", "rotary_emb_base"}
IGNORED |= {"rotary_pct", "partial_rotary_factor", "no_rope_layer_interval", "n_inner"}


@functools.cache
def checkpoint(name):
  return hf_checkpoint.load(FIXTURES / name)


@functools.cache
def logits_fn(config):
  """Logits of rows; one compilation serves all tests of a family."""
  model = transformer.model(config)

  def logits(params, rows):
    logits_RLV = model.hidden(params, rows) @ model.head(params).T
    return capping.soft_cap(logits_RLV, model.softcap)

  return jax.jit(logits)


def largest_error(config, lm, name) -> float:
  """Largest absolute difference of logits from torch's, without padding."""
  expected = np.load(FIXTURES / name / "expected.npz")
  rows = transformer.Rows.plain(expected["tokens_RL"], expected["mask_RL"])
  logits_RLV = logits_fn(config)(lm, rows)
  valid = expected["mask_RL"][:, :, None] == 1
  return float(np.abs(np.where(valid, logits_RLV - expected["logits_RLV"], 0)).max())


@pytest.mark.parametrize("name", FIXTURE_NAMES)
def test_logits_equal_torch(name):
  config, params, _ = checkpoint(name)
  assert largest_error(config, params["lm"], name) < 2e-5


def test_every_family_has_a_fixture():
  of_fixtures = {
    json.loads((FIXTURES / name / "config.json").read_text())["model_type"]
    for name in FIXTURE_NAMES
  }
  assert of_fixtures | {"gemma3"} == set(hf_config.FAMILIES)  # gemma3: nested, below


def without(*parts):
  """Parameters whose blocks lack some parts."""

  def change(lm):
    blocks = {part: leaf for part, leaf in lm["blocks"].items() if part not in parts}
    return lm | {"blocks": blocks}

  return change


def without_bias(part):
  """Parameters in which the bias of a part is 0."""

  def change(lm):
    leaves = lm["blocks"][part]
    zero = leaves | {"bias": np.zeros_like(leaves["bias"])}
    return lm | {"blocks": lm["blocks"] | {part: zero}}

  return change


def experts(config, **changes):
  return dataclasses.replace(config.experts, **changes)


def swiglu(config, **changes):
  return dataclasses.replace(config.swiglu, **changes)


def rotary(config, **changes):
  return dataclasses.replace(config.rotary, **changes)


SWITCHES = [
  ("llama3_scaled", lambda c: {"rotary": rotary(c, llama3=None)}),
  ("qwen2", lambda c: {"windows": ()}),
  ("qwen2", lambda c: {"windows": (5, 5, 5, 0)}),
  ("mistral", lambda c: {"windows": (6,) * c.layers}),
  ("qwen3", lambda c: {"rotary": Rotary(c.rotary.theta)}),
  (
    "qwen3",
    lambda c: {
      "rotary": rotary(c, yarn=dataclasses.replace(c.rotary.yarn, attention_factor=1.0))
    },
  ),
  (
    "qwen3",
    lambda c: {
      "rotary": rotary(c, yarn=dataclasses.replace(c.rotary.yarn, truncate=False))
    },
  ),
  ("qwen3", without("query_norm", "key_norm")),
  ("gemma", lambda c: {"norm": Norm.RMS}),
  ("gemma", lambda c: {"embedding_scale": 1.0}),
  ("gemma2", lambda c: {"attention_softcap": None}),
  ("gemma2", lambda c: {"logit_softcap": None}),
  ("gemma2", lambda c: {"attention_scale": None}),
  ("gemma2", without("attention_post_norm", "mlp_post_norm")),
  ("gemma3", lambda c: {"local_rotary": None}),
  ("gemma3", lambda c: {"rotary": rotary(c, linear=1.0)}),
  ("olmo2", without("attention_post_norm", "mlp_post_norm")),
  ("olmo2", without("query_norm", "key_norm")),
  ("olmo3", lambda c: {"local_rotary": None}),
  ("smollm3", lambda c: {"rotated": ()}),
  ("phi3", lambda c: {"rotary": rotary(c, fraction=1.0)}),
  ("granite", lambda c: {"embedding_scale": 1.0}),
  ("granite", lambda c: {"residual_scale": 1.0}),
  ("granite", lambda c: {"attention_scale": None}),
  ("granite", lambda c: {"logit_divisor": 1.0}),
  ("mixtral", lambda c: {"experts": experts(c, normalised=False)}),
  ("mixtral", lambda c: {"experts": experts(c, active=1)}),
  ("mixtral", lambda c: {"windows": ()}),
  ("qwen3_moe", lambda c: {"experts": experts(c, normalised=True)}),
  ("qwen3_moe", lambda c: {"experts": experts(c, active=2)}),
  ("qwen3_moe", without("query_norm", "key_norm")),
  ("gpt_oss", lambda c: {"experts": experts(c, active=3)}),
  ("gpt_oss", lambda c: {"swiglu": None}),
  ("gpt_oss", lambda c: {"swiglu": swiglu(c, alpha=1.0)}),
  ("gpt_oss", lambda c: {"swiglu": swiglu(c, limit=1e3)}),
  ("gpt_oss", lambda c: {"windows": (5, 5)}),
  (
    "gpt_oss",
    lambda c: {
      "rotary": rotary(c, yarn=dataclasses.replace(c.rotary.yarn, truncate=True))
    },
  ),
  ("gpt_oss", without("sink")),
  *(("gpt_oss", without_bias(part)) for part in ("router", "gate", "up", "down")),
  *(("gpt_oss", without_bias(part)) for part in ("query", "value", "output")),
]


@pytest.mark.parametrize(("name", "change"), SWITCHES)
def test_each_switch_is_needed_for_parity(name, change):
  config, params, _ = checkpoint(name)
  lm = params["lm"]
  if "without" in change.__qualname__:
    lm = change(lm)
  else:
    config = dataclasses.replace(config, **change(config))
  assert largest_error(config, lm, name) > 1e-3


MIXTURES = ["gpt_oss", "mixtral", "qwen3_moe"]


@pytest.mark.parametrize("name", MIXTURES)
def test_router_loss_equals_torch(name):
  config, params, _ = checkpoint(name)
  expected = np.load(FIXTURES / name / "expected.npz")
  rows = transformer.Rows.plain(expected["tokens_RL"], expected["mask_RL"])
  states = functools.partial(transformer.states, transformer.model(config))
  _, routing = jax.jit(states)(params["lm"], rows)
  balance = load_balance(routing, routing).value
  np.testing.assert_allclose(balance, expected["router_loss"], rtol=1e-5)


def test_experts_on_devices_give_the_gradient_of_one_device():
  # gpt-oss, whose experts have biases too.
  config, params, _ = checkpoint("gpt_oss")
  model = transformer.model(config)
  expected = np.load(FIXTURES / "gpt_oss" / "expected.npz")
  rows = transformer.Rows.plain(expected["tokens_RL"], expected["mask_RL"])

  @functools.partial(jax.jit, static_argnums=2)
  def gradient(lm, rows, mesh):
    def loss(lm):
      hidden_RLD, routing = transformer.states(model, lm, rows, mesh)
      logits_RLV = hidden_RLD @ model.head(lm).T
      valid_RL1 = rows.segment_RL[..., None] != 0
      logits_RLV = jnp.where(valid_RL1, logits_RLV, 0)
      nll = -jax.nn.log_softmax(logits_RLV)[..., 5].mean()
      return nll + load_balance(routing, routing).value, logits_RLV

    return jax.grad(loss, has_aux=True)(lm)

  whole, _ = gradient(params["lm"], rows, None)
  mesh = meshes.make_mesh(1, 2, 2, jax.devices()[:4])
  placed = place.place_params(mesh, params["lm"], model.logical_axes())
  grads, logits = gradient(placed, place.place_rows(mesh, rows), mesh)
  assert np.abs(logits - expected["logits_RLV"]).max() < 2e-5
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(whole), strict=True
  ):
    atol, where = 1e-4 * np.abs(theirs).max(), jax.tree_util.keystr(path)
    np.testing.assert_allclose(ours, theirs, atol=atol, err_msg=where)


@pytest.mark.parametrize("name", MIXTURES)
def test_samples_equal_rescoring(name):
  config, params, _ = checkpoint(name)
  lm = jax.tree.map(jnp.asarray, params["lm"])
  rng = np.random.default_rng(3)
  prompts = [rng.integers(3, config.vocab, n) for n in (6, 3, 4, 5)]
  batch = sample.PromptBatch(*sample.pad(prompts, 6), np.arange(4))
  generation = GenerationConfig(completions=2, max_completion_tokens=5, stop_ids=[2])
  options = dict(config=generation, key=jax.random.key(0))
  model = transformer.model(config)
  drawn = sample.sample(model, lm, batch, **options)
  if name == "gpt_oss":  # slots, and experts on devices
    refilled, _ = continuous_batching.sample(model, lm, batch, slots=3, **options)
    np.testing.assert_array_equal(refilled.tokens_BKT, drawn.tokens_BKT)
    mesh = meshes.make_mesh(1, 2, 2, jax.devices()[:4])
    placed = place.place_params(mesh, lm, model.logical_axes())
    split = sample.sample(model, placed, batch, mesh=mesh, **options)
    np.testing.assert_array_equal(split.tokens_BKT, drawn.tokens_BKT)
  tokens_BKT, length_BK = np.asarray(drawn.tokens_BKT), np.asarray(drawn.length_BK)
  texts = [
    [*prompts[b], *tokens_BKT[b, k, : length_BK[b, k]]] for b, k in np.ndindex(4, 2)
  ]
  for logits, text, (b, k) in zip(
    texts_logits(config, lm, texts), texts, np.ndindex(4, 2), strict=True
  ):
    logps = np.asarray(jax.nn.log_softmax(logits))
    start, length = len(prompts[b]), length_BK[b, k]
    expected = [logps[i - 1, text[i]] for i in range(start, len(text))]
    ours = np.asarray(drawn.logp_BKT)[b, k, :length]
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_experts_that_devices_do_not_divide_are_refused():
  config = checkpoint("qwen3_moe").config  # 6 experts
  mesh = meshes.make_mesh(1, 1, 4, jax.devices()[:4])
  shapes = jax.eval_shape(transformer.model(config).init, jax.random.key(0))
  axes = transformer.model(config).logical_axes()
  experts_only = {name: axes["blocks"][name] for name in ("gate", "up", "down")}
  parts = {name: shapes["blocks"][name] for name in experts_only}
  with pytest.raises(ValueError, match=r"'experts' of size 6 cannot be .*\[1, 2, 3, 6"):
    place.place_params(mesh, parts, experts_only)


def texts_logits(config, lm, texts):
  """Logits of texts, each alone in a row of 14 tokens, 4 rows at a time."""
  out = []
  for start in range(0, len(texts), 4):
    some = texts[start : start + 4]
    tokens, mask = np.zeros((2, 4, 14), np.int32)
    for row, text in enumerate(some):
      tokens[row, : len(text)], mask[row, : len(text)] = text, 1
    logits_RLV = logits_fn(config)(lm, transformer.Rows.plain(tokens, mask))
    out += [np.asarray(x[: len(t)]) for x, t in zip(logits_RLV, some, strict=False)]
  return out


@pytest.mark.parametrize("name", FIXTURE_NAMES)
def test_packed_branches_equal_plain_rows(name):
  config, params, _ = checkpoint(name)
  rng = np.random.default_rng(0)
  # Prompt and completions of three groups; the last branch of the first is far from its
  # prompt in the row, and its text longer than the windows.
  lengths = [[(4, (5, 5))], [(3, (2, 2)), (2, (3, 2))]]
  fields = np.zeros((4, 4, 14), np.int32)  # tokens, segment, branch, position
  texts, where = [], []
  for row, groups in enumerate(lengths):
    at = 0
    for segment, (prompt, completions) in enumerate(groups, 1):
      ids = rng.integers(3, config.vocab, prompt)
      prompt_at = list(range(at, at + prompt))
      fields[:, row, prompt_at] = ids, [segment] * prompt, [0] * prompt, range(prompt)
      at += prompt
      for branch, length in enumerate(completions, 1):
        own = rng.integers(3, config.vocab, length)
        own_at = list(range(at, at + length))
        fields[:, row, own_at] = (
          own,
          [segment] * length,
          [branch] * length,
          range(prompt, prompt + length),
        )
        at += length
        texts.append([*ids, *own])
        where.append((row, prompt_at + own_at))
  packed = logits_fn(config)(params["lm"], transformer.Rows(*fields))
  plain = texts_logits(config, params["lm"], texts)
  for (row, at), expected in zip(where, plain, strict=True):
    np.testing.assert_allclose(packed[row, np.asarray(at)], expected, atol=2e-5)


@pytest.mark.parametrize("name", FIXTURE_NAMES)
def test_decoding_equals_whole_rows(name):
  # The tokens are given, so that all logits are compared: a window shorter than the
  # prompt, and branches of different lengths beside each other.
  config, params, _ = checkpoint(name)
  rng = np.random.default_rng(1)
  B, K, P, T = 2, 2, 8, 5
  length_B = np.array([8, 3])
  prompt_BP = rng.integers(3, config.vocab, (B, P))
  own_BKT = rng.integers(3, config.vocab, (B, K, T))

  @jax.jit
  def decode(lm):
    hidden_BD, prompts = kv_cache.prefill(
      config, lm, jnp.asarray(prompt_BP), jnp.asarray(length_B)
    )

    def step(branches, t):
      token_BK = jnp.asarray(own_BKT)[:, :, t]
      at_BK = jnp.full((B, K), t)
      hidden_BKD, branches = kv_cache.decode(
        config, lm, token_BK, at_BK, prompts, branches
      )
      return branches, hidden_BKD

    branches = kv_cache.branches(prompts, K, T)
    _, hidden_TBKD = jax.lax.scan(step, branches, jnp.arange(T))
    first = jnp.broadcast_to(hidden_BD[None, :, None], (1, *hidden_TBKD.shape[1:]))
    logits = jnp.concatenate([first, hidden_TBKD]) @ transformer.head(config, lm).T
    return capping.soft_cap(logits, config.logit_softcap)

  logits_TBKV = np.asarray(decode(params["lm"]))
  texts = [
    [*prompt_BP[b, : length_B[b]], *own_BKT[b, k]] for b in range(B) for k in range(K)
  ]
  plain = texts_logits(config, params["lm"], texts)
  for text, (b, k) in zip(plain, np.ndindex(B, K), strict=True):
    expected = text[length_B[b] - 1 :]
    np.testing.assert_allclose(logits_TBKV[:, b, k], expected, atol=2e-5)


def test_program_does_not_grow_with_depth():
  # Windows, two rotary embeddings and all: they are scanned with the blocks.
  def lines(copies):
    config = checkpoint("gemma3").config
    deep = dataclasses.replace(
      config, layers=copies * config.layers, windows=copies * config.windows
    )
    model = transformer.model(deep)
    rows = transformer.Rows.plain(np.ones((1, 8), np.int32), np.ones((1, 8)))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    lowered = jax.jit(lambda lm: model.hidden(lm, rows)).lower(shapes)
    return len(lowered.as_text().splitlines())

  assert lines(8) == lines(1)


@pytest.mark.parametrize("name", FIXTURE_NAMES)
def test_weight_decay_is_of_matrices_only(name):
  axes = transformer.model(checkpoint(name).config).logical_axes()
  for path, decays in jax.tree_util.tree_leaves_with_path(optim.matrices(axes)):
    assert decays == (path[-1].key not in ("scale", "bias")), path


def test_gemma3_inside_a_model_of_images_loads(tmp_path):
  # As on the hub: a text_config, longer names, and weights that read images.
  directory = shutil.copytree(FIXTURES / "gemma3", tmp_path / "nested")
  text = json.loads((directory / "config.json").read_text())
  vision = {"model_type": "siglip_vision_model", "hidden_size": 8}
  config = {"model_type": "gemma3", "text_config": text, "vision_config": vision}
  (directory / "config.json").write_text(json.dumps(config))
  tensors = load_file(directory / "model.safetensors")
  for prefix in ("language_model.model.", "model.language_model."):
    renamed = {f"{prefix}{k.removeprefix('model.')}": v for k, v in tensors.items()}
    renamed["vision_tower.post_layernorm.weight"] = np.ones(8, np.float32)
    save_file(renamed, directory / "model.safetensors")
    loaded = hf_checkpoint.load(directory)
    assert loaded.config == checkpoint("gemma3").config
    assert_same(loaded.params, checkpoint("gemma3").params)


def test_config_of_several_families_goes_back_to_its_own(tmp_path):
  # Without a window Mistral is Llama, and Phi-3 too, whose weights are stored
  # otherwise; adapters need the names of their base.
  for name, family in (("mistral", "mistral"), ("phi3", "phi3"), ("olmo3", "olmo3")):
    config = dataclasses.replace(
      checkpoint(name).config,
      rotary=Rotary(),
      local_rotary=None,
      windows=(),
      family=None,
    )
    first = hf_config.find_family(config)
    config = hf_config.with_family(config, family)
    assert config.family == family and first is not hf_config.FAMILIES[family]
    params = checkpoint(name).params
    hf_checkpoint.save(tmp_path / name, config, params)
    assert hf_checkpoint.load(tmp_path / name).config == config
    content = json.loads((tmp_path / name / "config.json").read_text())
    assert content["model_type"] == family
  with pytest.raises(ValueError, match=r"no Hugging Face family of \['gpt2'\]"):
    hf_config.find_family(dataclasses.replace(config, family="gpt2"))


def test_guide_lists_every_family():
  text = (Path(__file__).parents[2] / "docs/guides/your_model.rst").read_text("utf-8")
  head, *rows = re.findall(r"^   \* - ``(\w+)``$", text, flags=re.M)
  assert head == "model_type" and rows == list(hf_config.FAMILIES)


@pytest.mark.parametrize("name", FIXTURE_NAMES)
def test_parameters_are_split_over_a_mesh(name):
  config, params, _ = checkpoint(name)
  mesh = meshes.make_mesh(1, 2, 2, jax.devices()[:4])
  axes = transformer.model(config).logical_axes()
  lm = place.place_params(mesh, params["lm"], axes)
  for path, leaf in jax.tree_util.tree_leaves_with_path(lm["blocks"]):
    where = jax.tree_util.keystr(path)
    if "kernel" in where:
      whole = config.kv_heads == 1 and ("key" in where or "value" in where)
      whole |= "router" in where
      part = {shard.data.size for shard in leaf.addressable_shards}
      assert part == {leaf.size // (2 if whole else 4)}, where
  # A single key-value head is whole on both; a norm is over heads that are split.
  if name in ("gemma3", "olmo2"):
    assert largest_error(config, lm, name) < 2e-5


def test_texts_beyond_dynamic_rope_are_refused():
  # Its base would depend on the length; within the context it is the default one.
  config = dataclasses.replace(
    checkpoint("llama").config, rotary=Rotary(5000.0, dynamic=4.0), positions=64
  )
  assert config.position_limit == 64
  assert largest_error(config, checkpoint("llama").params["lm"], "llama") < 2e-5
  written = hf_config.find_family(config).write(config)
  assert written.rope_parameters["rope_type"] == "dynamic"
  assert hf_config.find_family(config).read(written) == config
  long = Example("long", np.ones(60, np.int32), (np.ones(5, np.int32),), Layout.DEMO)
  with pytest.raises(ValueError, match="1 examples have more tokens than the 64 pos"):
    loading.beyond_positions(config, [long])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"windows": (4,)}, "windows has 1 values; .* 2 layers"),
    ({"windows": (4, -1)}, "windows has -1"),
    ({"rotated": (True,) * 3}, "rotated has 3 values"),
    ({"pre_norm": False}, "pre_norm and post_norm are False"),
    ({"logit_softcap": 0.0}, "logit_softcap is 0.0; it must be > 0"),
    ({"local_rotary": Rotary(fraction=0.5)}, "same fraction"),
    ({"router_loss": True}, "router_loss is True, and Config.experts None"),
    ({"router_loss_coef": -1.0}, "router_loss_coef is -1.0; it must be >= 0"),
    ({"experts": Experts(4, 2), "gated": False}, "experts needs a gated MLP"),
    ({"swiglu": ClampedSwiglu(), "gated": False}, "swiglu needs a gated MLP"),
  ],
)
def test_invalid_switch_raises_with_the_field(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(checkpoint("llama").config, **change)


def test_more_active_experts_than_there_are_is_refused():
  with pytest.raises(ValueError, match=r"active is 5; allowed: 1 to count = 4"):
    Experts(4, 5)


def test_two_rope_scalings_are_refused():
  with pytest.raises(ValueError, match=r"scalings \['dynamic', 'linear'\]"):
    Rotary(linear=2.0, dynamic=2.0)


def assert_same(a, b) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", FIXTURE_NAMES)
def test_saved_directory_is_torchs(name, tmp_path):
  config, params, _ = checkpoint(name)
  hf_checkpoint.save(tmp_path, config, params, shard_bytes=30_000)
  reloaded = hf_checkpoint.load(tmp_path)
  assert reloaded.config == config
  assert_same(reloaded.params, params)

  def tensors(directory):
    files = sorted(directory.glob("model*.safetensors"))
    return {k: v for file in files for k, v in load_file(file).items()}

  assert len(list(tmp_path.glob("*.safetensors"))) > 1
  assert_same(tensors(tmp_path), tensors(FIXTURES / name))

  def fields(directory):
    content = transformers.AutoConfig.from_pretrained(directory).to_dict()
    return {k: v for k, v in content.items() if k not in IGNORED}

  saved, torchs = fields(tmp_path), fields(FIXTURES / name)
  if name == "qwen3_moe":  # of the layers without experts, of which there are none
    saved.pop("intermediate_size"), torchs.pop("intermediate_size")
  rope = saved.pop("rope_parameters", None), torchs.pop("rope_parameters", None)
  assert saved == torchs
  if rope[1] is not None:
    assert rope[0].items() >= rope[1].items() or "full_attention" in rope[1]


@pytest.mark.parametrize("name", FIXTURE_NAMES)
def test_gradient_reaches_every_parameter_and_adapter(name):
  config, params, _ = checkpoint(name)
  adapter = Adapter(rank=2)
  rng = np.random.default_rng(2)
  pair = jax.tree.map(
    lambda w: rng.normal(size=w.shape).astype(np.float32) / 10,
    lora.weights(config, adapter),
  )
  tokens = rng.integers(3, config.vocab, (1, 10))
  rows = transformer.Rows.plain(tokens, np.ones_like(tokens))
  model = transformer.model(config)
  cap = model.softcap

  @jax.jit
  def loss(lm, pair):
    attached = lora.attach(lm, pair, adapter)

    def nll(lm):
      logits = capping.soft_cap(model.hidden(lm, rows) @ model.head(lm).T, cap)
      return -jax.nn.log_softmax(logits)[0, np.arange(9), tokens[0, 1:]].mean()

    return jax.value_and_grad(nll)(attached)

  value, grads = loss(params["lm"], pair)
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    where = jax.tree_util.keystr(path)
    # Without rotation a bias of the keys adds the same to all logits of a query.
    if config.rotary is not None or where != "['blocks']['key']['bias']":
      assert np.abs(grad).max() > 1e-7, where
  merged, _ = loss(
    lora.merged(params["lm"], pair, adapter), jax.tree.map(np.zeros_like, pair)
  )
  np.testing.assert_allclose(value, merged, rtol=1e-5)
