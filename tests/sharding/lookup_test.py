"""Rows of a split table are those of a whole one, and so is the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xpo_jax.sharding import lookup, rules
from xpo_jax.sharding import mesh as meshes

V, D, R, L = 24, 16, 8, 5
MESHES = [(1, 8, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2), (8, 1, 1)]
AXES = [("vocab", "embed"), ("position", "embed")]


def _split(mesh, axes):
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.standard_normal((V, D)), jnp.float32)
  ids = jnp.asarray(rng.integers(0, V, (R, L)))
  (sharding,) = rules.param_shardings(mesh, [axes], [table])
  by_row = NamedSharding(mesh, PartitionSpec(meshes.ROWS))
  return (table, ids), (jax.device_put(table, sharding), jax.device_put(ids, by_row))


@pytest.mark.parametrize("axes", AXES, ids=["vocab", "position"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_split_table_is_read_as_a_whole_one(sizes, axes):
  mesh = meshes.make_mesh(*sizes)
  whole, split = _split(mesh, axes)
  weight = jnp.asarray(np.random.default_rng(1).standard_normal((R, L, D)))

  def run(mesh):
    def loss(table, ids):
      found = lookup.take(mesh, table, ids, axes)
      return (found * weight).sum(), found

    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  (_, found), grad = run(None)(*whole)
  (_, ours), our_grad = run(mesh)(*split)
  np.testing.assert_array_equal(ours, found)
  np.testing.assert_allclose(our_grad, grad, atol=1e-5, rtol=1e-5)
  # The gradient stays where the table is, and no device makes the whole of it.
  assert our_grad.sharding.is_equivalent_to(split[0].sharding, 2)
  if split[0].sharding.shard_shape((V, D)) != (V, D):
    assert f"f32[{V},{D}]" not in run(mesh).lower(*split).compile().as_text()


@pytest.mark.nonfinite
@pytest.mark.parametrize("wrong", [-1, V, 10 * V])
@pytest.mark.parametrize("sizes", [None, (1, 8, 1), (2, 2, 2)], ids=str)
def test_id_that_the_table_lacks_gives_nan(sizes, wrong):
  mesh = None if sizes is None else meshes.make_mesh(*sizes)
  (table, ids), split = _split(mesh or meshes.make_mesh(1, 8, 1), AXES[0])
  where = (3, 2)
  table, ids = (table, ids) if mesh is None else split
  found = jax.jit(lambda table, ids: lookup.take(mesh, table, ids, AXES[0]))(
    table, ids.at[where].set(wrong)
  )
  bad = np.isnan(np.asarray(found))
  assert bad[where].all() and bad.sum() == D
