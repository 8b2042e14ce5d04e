"""A decoder whose attention is by blocks equals one that masks whole rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.models import transformer
from xpo_jax.models.config import Config, Rotary
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import place

ROWS, LENGTH = 8, 35  # no whole number of blocks
PLAIN = Config(
  vocab=32,
  width=16,
  layers=3,
  heads=4,
  kv_heads=2,
  head_dim=4,
  mlp_width=24,
  remat="full",
)
WINDOWS = dataclasses.replace(
  PLAIN,
  windows=(4, 0, 6),
  local_rotary=Rotary(theta=100.0),
  attention_softcap=2.0,
  attention_sink=True,
)
CONFIGS = {"plain": PLAIN, "windows, soft cap, sinks": WINDOWS}


def rows() -> transformer.Rows:
  rng = np.random.default_rng(0)
  segment, branch, position = np.zeros((3, ROWS, LENGTH), np.int32)
  for r in range(ROWS):
    at = 0
    for group in range(1, rng.integers(2, 5)):
      prompt = 0
      for k in range(rng.integers(2, 4)):
        size = min(rng.integers(1, 8), LENGTH - at)
        own = slice(at, at + size)
        segment[r, own], branch[r, own] = group, k
        position[r, own] = np.arange(size) + (prompt if k else 0)
        prompt = size if k == 0 else prompt
        at += size
  tokens = rng.integers(0, 32, segment.shape)
  return transformer.Rows(*map(jnp.asarray, (tokens, segment, branch, position)))


def value_and_gradient(config, blocks, monkeypatch, mesh=None):
  monkeypatch.setattr(transformer, "_BLOCK", blocks)
  model = transformer.model(config)
  params = jax.jit(model.init)(jax.random.key(0))
  if config.attention_sink:
    params["blocks"]["sink"]["bias"] += jnp.linspace(-1, 1, config.heads)[None]
  batch = rows()
  weight = jax.random.normal(jax.random.key(1), (ROWS, LENGTH, config.width))
  if mesh is not None:
    params = place.place_params(mesh, params, model.logical_axes())
    batch, weight = place.place_rows(mesh, (batch, weight))

  def loss(params):
    hidden_RLD, _ = transformer.states(model, params, batch, mesh)
    real_RL = batch.segment_RL != 0
    return jnp.where(real_RL[..., None], hidden_RLD * weight, 0).sum()

  return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


def check(actual, expected):
  for x, y in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4)


def use_kernels(monkeypatch):
  interpreted = functools.partial(transformer.kernels.blocked, interpret=True)
  monkeypatch.setattr(transformer.kernels, "blocked", interpreted)
  monkeypatch.setattr(transformer, "_has_kernels", lambda *_: True)
  # Interpreted kernels mix what varies over devices with what does not.
  monkeypatch.setattr(
    jax, "shard_map", functools.partial(jax.shard_map, check_vma=False)
  )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("split", [None, (2, 2, 2), (2, 1, 4)], ids=str)
def test_blocks_equal_masked_rows_on_any_mesh(name, split, monkeypatch):
  """Tensor 4 does not divide the two key heads: every device then has all heads."""
  config = CONFIGS[name]
  expected = value_and_gradient(config, {}, monkeypatch)
  mesh = None if split is None else meshes.make_mesh(*split)
  check(value_and_gradient(config, {"cpu": (8, 32)}, monkeypatch, mesh), expected)


def test_kernels_equal_masked_rows_on_a_mesh(monkeypatch):
  expected = value_and_gradient(WINDOWS, {}, monkeypatch)
  use_kernels(monkeypatch)
  mesh = meshes.make_mesh(2, 2, 2)
  check(value_and_gradient(WINDOWS, {"cpu": (8, 32)}, monkeypatch, mesh), expected)


@pytest.mark.parametrize(
  ("kind", "length", "entered", "chosen"),
  [
    ("TPU v5 lite", 4096, False, True),
    ("TPU v6e", 4096, False, True),
    ("TPU v4", 4096, False, False),
    ("cpu", 4096, False, False),
    ("TPU v5 lite", 65536, False, False),
    ("TPU v5 lite", 4096, True, False),  # the compiler would have to split them
  ],
)
def test_kernels_are_chosen_on_chips_that_hold_them(kind, length, entered, chosen):
  automatic = (jax.sharding.AxisType.Auto,) * 3
  device = jax.sharding.AbstractDevice(kind, 1, kind[:3].lower())
  mesh = jax.sharding.AbstractMesh(
    (1, 4, 1), meshes.AXES, automatic, abstract_device=device
  )
  query, key = (
    jax.ShapeDtypeStruct((1, length, heads, 128), jnp.bfloat16) for heads in (32, 8)
  )
  with jax.sharding.use_abstract_mesh(mesh):
    given = None if entered else mesh
    assert transformer._has_kernels(given, query, key, 128) == chosen


@pytest.mark.parametrize("by_kernels", [False, True], ids=["loops", "kernels"])
def test_no_device_gathers_rows_or_blocks_of_another(by_kernels, monkeypatch):
  if by_kernels:
    use_kernels(monkeypatch)
  monkeypatch.setattr(transformer, "_BLOCK", {"cpu": (8, 32)})
  mesh = meshes.make_mesh(8, 1, 1)
  model = transformer.model(PLAIN)
  params = place.place_params(
    mesh, jax.jit(model.init)(jax.random.key(0)), model.logical_axes()
  )
  batch = place.place_rows(mesh, rows())
  run = jax.jit(lambda p, b: transformer.states(model, p, b, mesh)[0])
  text = run.lower(params, batch).compile().as_text()
  assert "while" in text
  assert "all-gather" not in text and "all-reduce" not in text
