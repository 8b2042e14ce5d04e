import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.models import transformer
from xpo_jax.models.config import Activation, Config, Norm, Remat, Rotary
from xpo_jax.topology import flops

LLAMA = Config(
  vocab=32,
  width=16,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_width=24,
  positions=64,
  remat="none",
)
GPT2 = dataclasses.replace(
  LLAMA,
  kv_heads=4,
  head_dim=4,
  norm=Norm.LAYER,
  activation=Activation.GELU_TANH,
  gated=False,
  rotary=None,
  qkv_bias=True,
  output_bias=True,
  mlp_bias=True,
  tied=True,
)
GPT_NEOX = dataclasses.replace(
  GPT2, head_dim=8, rotary=Rotary(fraction=0.25), parallel_residual=True, tied=False
)


def noisy_params(config: Config):
  """Parameters with every leaf random, biases and norms included."""
  params = jax.jit(transformer.model(config).init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params
  )


def packed() -> transformer.Rows:
  """A row of two groups (3 + 2 + 3 and 2 + 2 tokens) and padding; distinct tokens."""
  segment = [1] * 8 + [2] * 4 + [0] * 2
  branch = [0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 1, 1, 0, 0]
  position = [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3, 0, 0]
  tokens = list(range(1, 15))
  return transformer.Rows(
    *(jnp.array([x]) for x in (tokens, segment, branch, position))
  )


def test_hidden_attends_to_its_prompt_and_branch_only():
  # The gradient of hidden state i with respect to the embedding of token j (tokens are
  # distinct) is exactly zero where i must not attend to j (later tokens, other branches
  # or segments, padding), else non-zero.
  model, rows = transformer.model(LLAMA), packed()
  params = noisy_params(LLAMA)
  probe_D = jnp.asarray(np.random.default_rng(1).standard_normal(16), jnp.float32)

  @jax.jit
  def influence(embedding):
    return jax.jacrev(
      lambda e: model.hidden(params | {"embedding": e}, rows) @ probe_D
    )(embedding)

  size = np.abs(influence(params["embedding"])[0]).max(-1)  # [L, V]
  tokens, segment, branch = (
    np.asarray(x)[0] for x in (rows.tokens_RL, rows.segment_RL, rows.branch_RL)
  )
  valid = [i for i in range(len(tokens)) if segment[i]]
  for i in valid:
    for j in range(len(tokens)):
      own_group = segment[i] == segment[j]
      attends = j <= i and own_group and branch[j] in (0, branch[i])
      assert (size[i, tokens[j]] > 0) == attends, (i, j)


@pytest.mark.parametrize(
  "config", [LLAMA, GPT2, GPT_NEOX], ids=["llama", "gpt2", "neox"]
)
def test_packed_branches_equal_separate_rows(config):
  model, params, rows = transformer.model(config), noisy_params(config), packed()
  hidden = jax.jit(model.hidden)
  shared_LD = np.asarray(hidden(params, rows))[0]
  # Each text alone: prompt and one branch, padded to one width.
  texts = [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7], [8, 9, 10, 11]]
  tokens_RL, mask_RL = np.zeros((3, 6), np.int32), np.zeros((3, 6), np.int32)
  for row, columns in enumerate(texts):
    tokens_RL[row, : len(columns)] = np.asarray(rows.tokens_RL)[0, columns]
    mask_RL[row, : len(columns)] = 1
  alone_RLD = np.asarray(hidden(params, transformer.Rows.plain(tokens_RL, mask_RL)))
  for row, columns in enumerate(texts):
    np.testing.assert_allclose(
      shared_LD[columns], alone_RLD[row, : len(columns)], atol=1e-5, rtol=0
    )


def _value_and_grad(remat):
  model = transformer.model(dataclasses.replace(LLAMA, remat=remat))

  def loss(params):
    return (model.hidden(params, packed()) @ model.head(params).T).std()

  return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("remat", ["full", "dots", "offload"])
def test_remat_changes_neither_value_nor_gradient(remat):
  params = noisy_params(LLAMA)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6),
    _value_and_grad(remat)(params),
    _value_and_grad("none")(params),
  )


def test_remat_computes_again_what_it_does_not_save():
  params = jax.eval_shape(transformer.model(LLAMA).init, jax.random.key(0))
  count = {
    remat: flops.traced(_value_and_grad(remat).trace(params).jaxpr, lambda path: 1.0)
    for remat in get_args(Remat)
  }
  L, D, H, g, h, F = 14, 16, 4, 2, 8, 24
  # Both products of attention have heads and rows as batch dimensions.
  attention = 2 * 2 * L * L * H * h
  # Of the linear layers the last one's output, which is only added, is not needed.
  linear = 2 * L * (D * h * (H + 2 * g) + H * h * D + 2 * D * F)
  assert count["dots"] - count["none"] == LLAMA.layers * attention
  assert count["full"] - count["none"] == LLAMA.layers * (attention + linear)
  assert count["offload"] == count["dots"]


def test_offload_keeps_products_in_memory_of_the_host():
  params = jax.eval_shape(transformer.model(LLAMA).init, jax.random.key(0))

  def on_host(remat):
    program = str(_value_and_grad(remat).trace(params).jaxpr)
    return program.count("<host>") > 0

  assert [on_host(remat) for remat in ("none", "full", "dots", "offload")] == [
    False,
    False,
    False,
    True,
  ]


def test_bfloat16_compute_is_close_with_float32_parameters():
  half = dataclasses.replace(LLAMA, compute_dtype="bfloat16")
  params, rows = noisy_params(LLAMA), packed()
  full = jax.jit(transformer.model(LLAMA).hidden)(params, rows)
  model = transformer.model(half)
  hidden, gradient = jax.jit(
    lambda p: (
      model.hidden(p, rows),
      jax.grad(lambda p: model.hidden(p, rows).astype(jnp.float32).std())(p),
    )
  )(params)
  assert hidden.dtype == jnp.bfloat16 and model.head(params).dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}
  # Hidden states are normalised to about one; bfloat16 has 8 bits.
  error = np.abs(np.asarray(hidden, np.float32) - full)[0, :12]
  assert 0 < error.max() < 0.1


@pytest.mark.nonfinite
@pytest.mark.parametrize("field", ["tokens_RL", "position_RL"])
def test_out_of_range_index_gives_nan(field):
  rows = packed().replace(**{field: jnp.full((1, 14), 64)})
  hidden = transformer.model(GPT2).hidden(noisy_params(GPT2), rows)
  assert np.isnan(hidden).all()


@pytest.mark.parametrize(
  "config", [LLAMA, GPT2, GPT_NEOX], ids=["llama", "gpt2", "neox"]
)
def test_logical_axes_name_every_axis_of_every_parameter(config):
  model = transformer.model(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  axes = model.logical_axes()
  sizes = {"layers": 2, "vocab": 32, "embed": 16, "mlp": 24, "position": 64}
  sizes |= {"heads": 4, "kv_heads": config.kv_heads, "head_dim": config.head_dim}

  def check(shape, names):
    assert shape.shape == tuple(sizes[name] for name in names)

  jax.tree.map(check, shapes, axes)


def test_equal_configs_share_one_model():
  assert transformer.model(LLAMA) is transformer.model(dataclasses.replace(LLAMA))


def test_initial_model_is_near_uniform_over_the_vocabulary():
  model = transformer.model(LLAMA)
  params = jax.jit(model.init)(jax.random.key(1))
  logits = jax.jit(lambda p: model.hidden(p, packed()) @ model.head(p).T)(params)
  loss = -jax.nn.log_softmax(logits).mean()
  assert abs(float(loss) - np.log(32)) < 0.05


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kv_heads": 3}, "kv_heads is 3"),
    ({"layers": 0}, "layers is 0"),
    ({"compute_dtype": "float8"}, "compute_dtype is 'float8'; allowed"),
    ({"rotary": Rotary(fraction=0.4)}, "even number"),
  ],
)
def test_invalid_config_raises_with_the_field(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(LLAMA, **change)
