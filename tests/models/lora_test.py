import dataclasses
import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.models import hf_checkpoint, lora, merge, sample, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.lora import Adapter
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import rules

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ["llama", "gpt_neox", "gpt2"]
ADAPTER = Adapter(rank=3, alpha=12.0)
DORA = dataclasses.replace(ADAPTER, dora=True)


@pytest.fixture(scope="module")
def bases():
  loaded = {name: hf_checkpoint.load(FIXTURES / name) for name in NAMES}
  return {n: x._replace(params=jax.device_put(x.params)) for n, x in loaded.items()}


def rows_of(name: str) -> transformer.Rows:
  expected = np.load(FIXTURES / name / "expected.npz")
  return transformer.Rows.plain(expected["tokens_RL"], expected["mask_RL"])


def random_adapter(config, adapter=ADAPTER, seed=1):
  """Random adapters with both factors non-zero."""
  params = lora.init(config, adapter, jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  noise = [0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
  return jax.tree.unflatten(tree, noise)


@functools.partial(jax.jit, static_argnums=0)
def hidden_of(config, lm, rows):
  return transformer.model(config).hidden(lm, rows)


@pytest.mark.parametrize(
  ("name", "adapter"), [*((name, ADAPTER) for name in NAMES), ("gpt2", DORA)]
)
def test_initial_adapters_change_nothing_and_attached_equal_merged(
  bases, name, adapter
):
  config, lm = bases[name].config, bases[name].params["lm"]
  rows = rows_of(name)
  base = np.asarray(hidden_of(config, lm, rows))
  initial = lora.init(config, adapter, jax.random.key(0))
  unchanged = np.asarray(hidden_of(config, lora.attach(lm, initial, adapter), rows))
  np.testing.assert_array_equal(unchanged, base)
  random_params = random_adapter(config, adapter)
  attached = hidden_of(config, lora.attach(lm, random_params, adapter), rows)
  merged = hidden_of(config, lora.merged(lm, random_params, adapter), rows)
  assert np.abs(attached - base).max() > 0.1
  np.testing.assert_allclose(attached, merged, atol=2e-5)


def test_merged_kernel_is_base_plus_scaled_product(bases):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  params = random_adapter(config)
  merged = lora.merged(lm, params, ADAPTER)
  for part in ("query", "output", "down"):
    pair = params["blocks"][part]
    a, b = (np.asarray(pair[x][1], np.float64) for x in ("a", "b"))
    outputs = b.shape[1:]
    product = a.reshape(-1, 3) @ b.reshape(3, -1)
    expected = lm["blocks"][part]["kernel"][1] + 12 / 3 * product.reshape(
      *a.shape[:-1], *outputs
    )
    got = merged["blocks"][part]["kernel"][1]
    np.testing.assert_allclose(got, expected, atol=1e-6)
  untouched = jax.tree.map(jnp.array_equal, merged, lm)
  assert untouched["embedding"] and not untouched["blocks"]["up"]["kernel"]


def test_dora_normalises_the_merged_kernel_and_takes_the_norm_for_a_constant(bases):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  adapter = dataclasses.replace(DORA, targets="output|down")
  params = random_adapter(config, adapter)
  rng = np.random.default_rng(0)
  merged = lora.merged(lm, params, adapter)
  shapes = {part: lm["blocks"][part]["kernel"].shape for part in params["blocks"]}
  weight = {part: rng.normal(size=shape) for part, shape in shapes.items()}

  def loss(params):
    change = lora.delta(lm, params, adapter)["blocks"]
    return sum((change[part]["kernel"] * weight[part]).sum() for part in weight)

  got = jax.jit(jax.grad(loss))(params)
  for part, own in params["blocks"].items():
    for n in range(config.layers):
      width = own["m"].shape[-1]
      a, b, m, w, d = (
        np.asarray(x[n], np.float64).reshape(*shape)
        for x, shape in (
          (own["a"], (-1, 3)),
          (own["b"], (3, width)),
          (own["m"], (width,)),
          (lm["blocks"][part]["kernel"], (-1, width)),
          (weight[part], (-1, width)),
        )
      )
      whole = w + 4 * a @ b
      magnitude = np.linalg.norm(w, axis=0) + m
      direction = whole / np.linalg.norm(whole, axis=0)
      kernel = np.asarray(merged["blocks"][part]["kernel"][n]).reshape(w.shape)
      np.testing.assert_allclose(kernel, magnitude * direction, atol=1e-6)
      d_whole = 4 * d * magnitude / np.linalg.norm(whole, axis=0)
      expected = {"a": d_whole @ b.T, "b": a.T @ d_whole, "m": (d * direction).sum(0)}
      for leaf, value in expected.items():
        grad = np.asarray(got["blocks"][part][leaf][n]).reshape(value.shape)
        np.testing.assert_allclose(grad, value, rtol=1e-4, atol=1e-5)


def test_dora_refuses_what_it_is_not_defined_on(bases):
  mixtral = hf_checkpoint.read_config(FIXTURES / "mixtral")
  with pytest.raises(
    ValueError, match=r"experts or their router \(.*'query\|key\|value\|out"
  ):
    lora.targets(mixtral, DORA)
  attention = dataclasses.replace(DORA, targets="query|output")
  assert lora.targets(mixtral, attention) == ("query", "output")
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  kernel = lm["blocks"]["down"]["kernel"].at[1, :, 3].set(0)
  blocks = lm["blocks"] | {"down": {"kernel": kernel}}
  with pytest.raises(ValueError, match=r"blocks/down has an output .* 0 in layer 1:"):
    lora.check_base(config, DORA, lm | {"blocks": blocks})
  lora.check_base(config, attention, lm | {"blocks": blocks})


def test_merging_changes_equals_merging_whole_weights(bases):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  sft, dpo = (random_adapter(config, seed=seed) for seed in (2, 3))
  mean = merge.linear([lora.delta(lm, p, ADAPTER) for p in (sft, dpo)], [1, 3])
  got = lora.add(lm, mean)
  whole = [merge.delta(lora.merged(lm, p, ADAPTER), lm) for p in (sft, dpo)]
  expected = merge.apply(lm, merge.linear(whole, [1, 3]))
  chex.assert_trees_all_close(got, expected, atol=1e-5)


def test_gradient_equals_that_of_the_merged_model(bases):
  config, lm = bases["gpt2"].config, bases["gpt2"].params["lm"]
  rows, params = rows_of("gpt2"), random_adapter(bases["gpt2"].config)
  model = transformer.model(config)
  rng = np.random.default_rng(0)
  weight = rng.normal(size=(*rows.tokens_RL.shape, config.width)).astype(np.float32)
  weight *= (np.asarray(rows.segment_RL) > 0)[..., None]

  def loss(lm):
    return (model.hidden(lm, rows) * weight).sum()

  got = jax.jit(jax.grad(lambda p: loss(lora.attach(lm, p, ADAPTER))))(params)
  full = jax.jit(jax.grad(loss))(lora.merged(lm, params, ADAPTER))
  for part, pair in params["blocks"].items():
    d_kernel, s = full["blocks"][part]["kernel"], ADAPTER.scale
    for n in range(config.layers):
      a, b = (np.asarray(pair[x][n]) for x in ("a", "b"))
      d = np.asarray(d_kernel[n]).reshape(a.reshape(-1, 3).shape[0], -1)
      scale = np.abs(d).max()
      expected_a, expected_b = s * d @ b.reshape(3, -1).T, s * a.reshape(-1, 3).T @ d
      got_a, got_b = (np.asarray(got["blocks"][part][x][n]) for x in ("a", "b"))
      np.testing.assert_allclose(
        got_a.reshape(expected_a.shape), expected_a, atol=1e-4 * scale
      )
      np.testing.assert_allclose(
        got_b.reshape(expected_b.shape), expected_b, atol=1e-4 * scale
      )


def test_l1_gradient_equals_numerical_gradient(bases):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  adapter = Adapter(rank=2, alpha=4.0, targets="query")
  params = random_adapter(config, adapter)
  total = float(lora.l1(lm, params, adapter))
  pair = jax.tree.map(np.asarray, params["blocks"]["query"])
  by_hand = 2 * np.abs(np.einsum("nir,nrhd->nihd", pair["a"], pair["b"])).sum()
  assert total == pytest.approx(by_hand, rel=1e-5)
  grads = jax.grad(lora.l1, argnums=1)(lm, params, adapter)
  step = jax.tree.map(lambda x: 1e-4 * jnp.sign(x), params)
  up, down = (jax.tree.map(lambda p, s, g=g: p + g * s, params, step) for g in (1, -1))
  slope = (lora.l1(lm, up, adapter) - lora.l1(lm, down, adapter)) / 2
  dots = jax.tree.map(lambda g, s: (g * s).sum(), grads, step)
  assert float(slope) == pytest.approx(float(sum(jax.tree.leaves(dots))), rel=1e-2)


@pytest.mark.parametrize(
  ("name", "pattern", "parts"),
  [
    ("llama", "query|value", {"query", "value"}),
    ("llama", "q_proj|v_proj", {"query", "value"}),
    ("llama", r"mlp[.].*", {"gate", "up", "down"}),
    ("llama", "blocks/output/kernel", {"output"}),
    ("llama", ".*", {"query", "key", "value", "output", "gate", "up", "down"}),
    ("gpt_neox", "key", {"key"}),
    ("gpt_neox", "query_key_value", {"query", "key", "value"}),
    ("gpt2", r"attn\.c_proj", {"output"}),
    ("gpt2", "c_proj", {"output", "down"}),
    ("gpt2", r"transformer\.h\.\d+\.mlp\.c_fc", {"up"}),
  ],
)
def test_targets_match_parameter_and_module_names(bases, name, pattern, parts):
  adapter = Adapter(targets=pattern)
  assert set(lora.targets(bases[name].config, adapter)) == parts


@pytest.mark.parametrize(
  ("pattern", "message"),
  [
    ("lm_head", r"'lm_head' matches no linear layer .*; allowed: query, key.*q_proj"),
    ("q_proj|lm_head", r"'lm_head' matches no linear layer"),
    (r"layers\.0\..*", r"matches model.layers.0.self_attn.q_proj but not every layer"),
  ],
)
def test_invalid_targets_raise_with_the_pattern(bases, pattern, message):
  with pytest.raises(ValueError, match=message):
    lora.init(bases["llama"].config, Adapter(targets=pattern), jax.random.key(0))


def test_routers_are_adapted_and_experts_in_one_tensor_are_not():
  mixtral, gpt_oss = (
    hf_checkpoint.read_config(FIXTURES / name) for name in ("mixtral", "gpt_oss")
  )
  attention = {"query", "key", "value", "output"}
  mixture = {"router", "gate", "up", "down"}
  assert set(lora.targets(mixtral, Adapter())) == attention | mixture
  assert lora.targets(mixtral, Adapter(targets="block_sparse_moe.gate")) == ("router",)
  assert set(lora.targets(mixtral, Adapter(targets="w1|w3"))) == {"gate", "up"}
  assert set(lora.targets(gpt_oss, Adapter())) == attention
  for pattern in ("router", "query|down"):
    with pytest.raises(ValueError, match=r"matches no linear layer that PEFT adapts"):
      lora.targets(gpt_oss, Adapter(targets=pattern))
  with pytest.raises(ValueError, match=r"experts\.0\.w1 but not every .*expert's"):
    lora.targets(mixtral, Adapter(targets=r".*experts\.0\.w1"))


@pytest.mark.parametrize(
  ("field", "value"), [("rank", 0), ("alpha", 0.0), ("targets", "(q"), ("l1", -1.0)]
)
def test_invalid_settings_raise_with_the_field(field, value):
  with pytest.raises(ValueError, match=rf"Adapter.{field} is "):
    Adapter(**{field: value})


def test_initial_a_has_the_stated_deviation_and_b_is_zero(bases):
  config = dataclasses.replace(bases["llama"].config, width=512, layers=1)
  adapter = Adapter(rank=16, targets="query")
  pair = lora.init(config, adapter, jax.random.key(0))["blocks"]["query"]
  assert not pair["b"].any()
  assert float(pair["a"].std()) == pytest.approx((3 * 512) ** -0.5, rel=0.05)


def test_sampling_from_attached_equals_sampling_from_merged(bases):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  params = random_adapter(config)
  sample_completions = functools.partial(
    sample.sample,
    transformer.model(config),
    prompts=sample.PromptBatch(np.array([[5, 6, 7]]), np.array([3]), np.array([0])),
    config=GenerationConfig(5, completions=2, stop_ids=()),
    key=jax.random.key(0),
  )
  attached = sample_completions(lora.attach(lm, params, ADAPTER))
  merged = sample_completions(lora.merged(lm, params, ADAPTER))
  np.testing.assert_array_equal(attached.tokens_BKT, merged.tokens_BKT)
  np.testing.assert_allclose(attached.logp_BKT, merged.logp_BKT, atol=1e-4)


def test_adapters_are_sharded_like_their_kernels(bases):
  model = transformer.model(bases["llama"].config)
  mesh = meshes.make_mesh(1, 2, 2, jax.devices()[:4])
  trained = lora.trainable_model(model, DORA)
  attached = lora.attached_model(model, DORA)
  shapes = jax.eval_shape(trained.init, jax.random.key(0))
  shardings = rules.param_shardings(mesh, trained.logical_axes(), shapes)
  pair = shardings["blocks"]["output"]
  assert tuple(pair["a"].spec) == (None, "tensor", None, None)
  assert tuple(pair["b"].spec) == (None, None, "fsdp")
  assert tuple(pair["m"].spec) == (None, "fsdp")
  attached_shapes = jax.eval_shape(
    lambda lm, p: lora.attach(lm, p, DORA),
    jax.eval_shape(model.init, jax.random.key(0)),
    shapes,
  )
  attached_shardings = rules.param_shardings(
    mesh, attached.logical_axes(), attached_shapes
  )
  assert attached_shardings["blocks"]["output"]["lora"] == pair
  assert lora.trainable_model(model, None) is model
  assert lora.attached_model(model, None) is model
