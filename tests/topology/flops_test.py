"""FLOPs of a traced program against those of the model's definition."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from xpo_jax.models import transformer
from xpo_jax.models.config import Config
from xpo_jax.ops import attention
from xpo_jax.ops.tpu import attention as kernels
from xpo_jax.topology import flops

CONFIG = Config(
  vocab=24,
  width=8,
  layers=3,
  heads=4,
  kv_heads=2,
  head_dim=4,
  mlp_width=12,
  remat="none",
)


def _no_loops(path):
  raise AssertionError(f"no loop is of unknown length: {path}")


def test_forward_pass_counts_what_the_definition_says():
  L = 6
  rows = transformer.Rows.plain(jnp.zeros((2, L), jnp.int32), jnp.ones((2, L)))
  model = transformer.model(CONFIG)
  params = jax.eval_shape(model.init, jax.random.key(0))
  traced = jax.jit(model.hidden).trace(params, rows)
  # Two products of 2 x 6 tokens with all L positions, in each head and layer.
  attended = 2 * L * L * 4 * CONFIG.heads * CONFIG.head_dim * CONFIG.layers
  expected = 2 * L * flops.of_token(CONFIG) + attended
  assert flops.traced(traced.jaxpr, _no_loops) == expected
  D, H, g, h, F = 8, 4, 2, 4, 12
  by_hand = 3 * 2 * (D * h * (2 * H + 2 * g) + 3 * D * F)
  assert flops.of_token(CONFIG) == by_hand


def test_a_backward_pass_counts_twice_the_forward_one():
  def loss(w, x):
    for _ in range(3):
      x = jnp.tanh(x @ w)
    return x.sum()

  w, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 5), (7, 5)))
  traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(w, x)
  assert flops.traced(traced.jaxpr, _no_loops) == 3 * 3 * 2 * 7 * 5 * 5


def test_loops_count_as_often_as_they_run():
  def run(x, count):
    x = jax.lax.fori_loop(0, 4, lambda _, x: x @ x, x)
    with jax.named_scope("data"):
      return jax.lax.fori_loop(0, count, lambda _, x: x @ x, x)

  traced = jax.jit(run).trace(jnp.ones((3, 3)), 2)
  trips = {"data": 2.5}
  total = flops.traced(
    traced.jaxpr, lambda path: next(n for name, n in trips.items() if name in path)
  )
  assert total == (4 + 2.5) * 2 * 27


def test_a_kernel_counts_as_often_as_its_grid_and_loops_run():
  def kernel(count_ref, x_ref, out_ref):
    with jax.named_scope("data"):
      y = jax.lax.fori_loop(0, count_ref[0], lambda _, x: x @ x, x_ref[...])
    out_ref[...] = y @ y

  @jax.jit
  def run(count, x):
    square = pl.BlockSpec((8, 8), lambda i, _: (i, 0))
    grid_spec = pltpu.PrefetchScalarGridSpec(1, (3,), [square], square)
    call = pl.pallas_call(kernel, out_shape=x, grid_spec=grid_spec)
    return call(count, x @ x[:8].T)

  traced = run.trace(jnp.array([2]), jnp.ones((24, 8)))
  inside = 3 * (2.5 + 1) * 2 * 8**3
  assert flops.in_kernels(traced.jaxpr, lambda path: 2.5) == inside
  assert flops.traced(traced.jaxpr, lambda path: 2.5) == inside + 2 * 24 * 8 * 8


def test_kernels_of_attention_count_as_the_loops_do():
  R, L, H, g, h, b = 2, 512, 4, 2, 64, 128
  ids = jax.eval_shape(lambda: attention.ids(*jnp.ones((3, R, L), jnp.int32)))
  pairs = jax.eval_shape(lambda ids: attention.block_pairs(ids, b), ids)

  def loops(path):
    assert attention.KEY_BLOCKS in path
    return 2.5

  def count(way):
    def loss(*inputs):
      return way(*inputs, block=b, scale=1.0).sum()

    shapes = (jax.ShapeDtypeStruct((R, L, n, h), jnp.float32) for n in (H, g, g))
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*shapes, ids, pairs)
    return flops.traced(traced.jaxpr, loops)

  # Two products of a pair of blocks forward, five backward.
  assert count(kernels.blocked) == 7 * 2 * (R * L / b) * 2.5 * H * b * b * h
  assert count(kernels.blocked) == count(attention.blocked)


def test_attention_counts_each_position_with_those_before_it():
  position = np.array([0, 1, 2, 2, 3])  # a prompt of 2, branches of 1 and 2 tokens
  one = 4 * CONFIG.heads * CONFIG.head_dim * CONFIG.layers
  assert flops.of_attention(CONFIG, position) == one * (1 + 2 + 3 + 3 + 4)
