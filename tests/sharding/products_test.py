"""Products with split weights are those with whole ones, and so are the gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import nf4, products, rules

MESHES = [(1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2)]
ROWS, LENGTH = 8, 6
# Axes of kernels, sizes and how many axes are contracted. Three key heads are held
# whole where two do not divide them.
KERNELS = {
  "query": (("embed", "heads", "head_dim"), (16, 8, 4), 1),
  "key": (("embed", "kv_heads", "head_dim"), (16, 3, 4), 1),
  "output": (("heads", "head_dim", "embed"), (8, 4, 16), 2),
  "down": (("mlp", "embed"), (24, 16), 1),
}


def _loss(mesh, axes, contract, weight):
  def loss(x, kernel):
    y = products.product(mesh, axes, x, kernel, contract)
    return (jnp.sin(y) * weight).sum(), y

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@pytest.fixture(params=KERNELS)
def case(request):
  axes, sizes, contract = KERNELS[request.param]
  rng = np.random.default_rng(0)
  shapes = (ROWS, LENGTH, *sizes[:contract]), sizes, (ROWS, LENGTH, *sizes[contract:])
  x, kernel, weight = (jnp.asarray(rng.standard_normal(s), "float32") for s in shapes)
  return axes, contract, x, kernel, weight


def _placed(mesh, axes, x, kernel):
  (sharding,) = rules.param_shardings(mesh, [axes], [kernel])
  by_row = NamedSharding(mesh, PartitionSpec(meshes.ROWS))
  return jax.device_put(x, by_row), jax.device_put(kernel, sharding)


# What sums a gradient over devices of a kind, and keeps each one's part.
SUMS = {"cpu": "all-to-all(", "TPU v5 lite": "reduce-scatter("}


@pytest.fixture(params=SUMS)
def kind(request, monkeypatch):
  """The kind of device that `products` reads; the devices are those of the test."""
  monkeypatch.setattr(meshes, "device_kind", lambda mesh: request.param)
  return request.param


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_product_and_gradients_of_a_split_kernel(sizes, case, kind):
  axes, contract, x, kernel, weight = case
  mesh = meshes.make_mesh(*sizes)
  expected = _loss(None, axes, contract, weight)(x, kernel)
  run = _loss(mesh, axes, contract, weight)
  placed = _placed(mesh, axes, x, kernel)
  ours = run(*placed)
  for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  if mesh.shape["fsdp"] > 1:
    # Each device has the part of the gradient that belongs to its part of the kernel.
    d_kernel = ours[1][1]
    assert d_kernel.sharding.is_equivalent_to(placed[1].sharding, kernel.ndim)
    text = run.lower(*placed).compile().as_text()
    assert [sum_of for sum_of in SUMS.values() if sum_of in text] == [SUMS[kind]]


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("kind", ["TPU v5 lite"], indirect=True)
@pytest.mark.parametrize("lines", [(8,), (2, 4), (4, 2), (2, 2, 2)], ids=str)
def test_sums_scattered_line_by_line_are_those_scattered_at_once(
  lines, case, monkeypatch
):
  axes, contract, x, kernel, weight = case
  mesh = meshes.make_mesh(1, 8, 1)
  monkeypatch.setattr(meshes, "lines", lambda mesh, axis: lines)
  ours = _loss(mesh, axes, contract, weight)(*_placed(mesh, axes, x, kernel))
  expected = _loss(None, axes, contract, weight)(x, kernel)
  for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_frozen_kernel_has_no_gradient_to_compute(case):
  axes, contract, x, kernel, weight = case
  mesh = meshes.make_mesh(1, 8, 1)

  def loss(x):
    y = products.product(mesh, axes, x, kernel, contract)
    return (jnp.sin(y) * weight).sum()

  text = str(jax.make_jaxpr(jax.grad(loss))(x))
  assert text.count("dot_general") == 2 and "reduce_scatter" not in text


def test_policies_of_remat_see_the_product(case):
  axes, contract, x, kernel, weight = case
  mesh = meshes.make_mesh(1, 8, 1)
  policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

  def products_of(policy):
    @functools.partial(jax.checkpoint, policy=policy)
    def layer(x, kernel):
      return jnp.sin(products.product(mesh, axes, x, kernel, contract))

    grad = jax.grad(lambda *x: (layer(*x) * weight).sum(), argnums=(0, 1))
    return str(jax.make_jaxpr(grad)(x, kernel)).count("dot_general")

  assert products_of(policy) == 3
  assert products_of(None) == 4  # computed again


@pytest.mark.parametrize("length, gathered", [(LENGTH, True), (1, False)])
def test_few_activations_leave_it_to_the_compiler_what_moves(length, gathered):
  axes, sizes, _ = KERNELS["down"]
  mesh = meshes.make_mesh(1, 8, 1)
  x = jnp.ones((ROWS, length, sizes[0]))
  run = jax.make_jaxpr(lambda x, kernel: products.product(mesh, axes, x, kernel))
  assert ("all_gather" in str(run(x, jnp.ones(sizes)))) == gathered


@pytest.mark.parametrize("sizes", [None, *MESHES], ids=str)
def test_product_with_a_weight_in_4_bits_is_that_with_its_values(sizes, case):
  """And so is the gradient of its input; scales are whole where a mesh does not divide
  their blocks."""
  axes, contract, x, kernel, weight = case
  small = nf4.quantise(kernel, contract - 1)

  def of(mesh, kernel):
    def loss(x):
      y = products.product(mesh, axes, x, kernel, contract)
      return (jnp.sin(y) * weight).sum(), y

    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  expected = of(None, small.astype(jnp.float32))(x)
  mesh = None if sizes is None else meshes.make_mesh(*sizes)
  if mesh is not None:
    x, small = _placed(mesh, axes, x, small)
  got = of(mesh, small)(x)
  for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
