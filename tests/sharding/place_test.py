"""Placement of parameters, optimiser states and batches on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import PartitionSpec as P

from xpo_jax.config import optim
from xpo_jax.sharding import distributed, place, rules
from xpo_jax.sharding import mesh as meshes

AXES = {
  "kernel": ("layers", "embed", "mlp"),
  "table": ("vocab", "embed"),
  "scale": ("embed",),
  "bias": (),
}


def _init(key):
  return {
    "kernel": jax.random.normal(key, (2, 8, 12)),
    "table": jax.random.normal(key, (6, 8)),
    "scale": jnp.ones(8),
    "bias": jnp.zeros(()),
  }


@pytest.fixture(scope="module")
def mesh():
  return meshes.make_mesh(2, 2, 2)


@pytest.fixture(scope="module")
def params(mesh):
  return place.init_params(mesh, _init, AXES, jax.random.key(0))


def _parts(x):
  """Shapes of the parts that devices hold."""
  return {shard.data.shape for shard in x.addressable_shards}


def test_init_params_partitions_by_the_rules(params):
  assert _parts(params["kernel"]) == {(2, 4, 6)}
  assert _parts(params["table"]) == {(3, 4)}
  assert _parts(params["scale"]) == {(4,)}


def test_place_params_equals_init_in_place(mesh, params):
  placed = place.place_params(mesh, jax.jit(_init)(jax.random.key(0)), AXES)
  for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(params), strict=True):
    assert a.sharding == b.sharding
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "optimizer, large_moments",
  [
    (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), 4),
    (optax.rmsprop(1e-3), 2),
    (optax.adafactor(1e-3, min_dim_size_to_factor=4), 0),  # factors only
  ],
  ids=["adamw", "rmsprop", "adafactor"],
)
def test_init_optimizer_places_moments_with_parameters(
  mesh, params, optimizer, large_moments
):
  state = place.init_optimizer(mesh, optimizer, params, AXES)
  like = {x.shape: x.sharding for x in jax.tree.leaves(params) if x.ndim}
  for x in jax.tree.leaves(state):
    assert x.committed and len(x.sharding.device_set) == 8
  large = [x for x in jax.tree.leaves(state) if x.ndim > 1 and x.shape in like]
  assert len(large) == large_moments
  for x in large:
    assert x.sharding == like[x.shape]
  # The state survives an update without moving.
  update = jax.jit(lambda g, s, p: optimizer.update(g, s, p)[1])
  after = update(params, state, params)
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
    assert x.shape not in like or x.ndim < 2 or y.sharding == x.sharding


def test_muon_on_a_mesh_equals_one_device(mesh, params):
  optimizer = optim.transform(optim.Optimizer("muon"), AXES)
  axes, placed = {"lm": AXES}, {"lm": params}
  host = jax.device_get(placed)
  state = place.init_optimizer(mesh, optimizer, placed, axes)
  # Of the kernel a momentum, of the table AdamW's two.
  large = [x for x in jax.tree.leaves(state) if x.ndim > 1]
  assert sorted(x.shape for x in large) == [(2, 8, 12), (6, 8), (6, 8)]
  assert all(len(x.sharding.device_set) == 8 and _parts(x) != {x.shape} for x in large)
  update = jax.jit(optimizer.update)
  got, _ = update(placed, state, placed)
  want, _ = update(host, optimizer.init(host), host)
  for x, y in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_params_that_do_not_divide_are_refused_by_name(mesh):
  axes = {"attention": {"query": ("embed", "heads", "head_dim")}}
  with pytest.raises(ValueError, match=r"attention/query.*'heads' of size 3.*tensor=2"):
    place.place_params(mesh, {"attention": {"query": np.ones((8, 3, 4))}}, axes)


def test_key_and_value_heads_that_do_not_divide_are_whole_on_every_device(mesh):
  axes = {"key": ("embed", "kv_heads", "head_dim")}
  for heads, part in ((4, 2), (3, 3), (1, 1)):
    placed = place.place_params(mesh, {"key": np.ones((8, heads, 4))}, axes)
    assert _parts(placed["key"]) == {(4, part, 4)}


def test_axis_without_a_rule_is_refused_by_name(mesh):
  with pytest.raises(ValueError, match=r"w has the axes.*\['images'\].*'vocab'"):
    rules.param_shardings(mesh, {"w": ("images", "embed")}, {"w": np.ones((8, 8))})


def test_axes_of_another_rank_are_refused_by_name(mesh):
  with pytest.raises(ValueError, match=r"w of shape \(8,\)"):
    rules.param_shardings(mesh, {"w": ("vocab", "embed")}, {"w": np.ones(8)})


@struct.dataclass
class _Batch:
  tokens_MRL: np.ndarray
  valid_MRC: np.ndarray
  index_MBKT: np.ndarray
  ref: dict


def _batch(rows):
  return _Batch(
    tokens_MRL=np.arange(2 * rows * 3, dtype=np.int32).reshape(2, rows, 3),
    valid_MRC=np.ones((2, rows, 5), np.float32),
    index_MBKT=np.zeros((2, 3, 2, 4), np.int32),
    ref={"ref_logp_BKT": np.ones((2, 3, 2, 4), np.float32)},
  )


def test_place_batch_splits_rows_and_copies_the_rest(mesh):
  batch = _batch(rows=8)
  placed = place.place_batch(mesh, batch)
  assert placed.tokens_MRL.sharding.spec == P(None, ("data", "fsdp"), None)
  assert _parts(placed.tokens_MRL) == {(2, 2, 3)}
  assert _parts(placed.valid_MRC) == {(2, 2, 5)}
  assert placed.index_MBKT.is_fully_replicated
  assert placed.ref["ref_logp_BKT"].is_fully_replicated
  np.testing.assert_array_equal(placed.tokens_MRL, batch.tokens_MRL)


def test_place_batch_refuses_uneven_rows(mesh):
  with pytest.raises(ValueError, match="rows=6"):
    place.place_batch(mesh, _batch(rows=6))


def test_digest_distinguishes_values_shapes_and_dtypes():
  batch = _batch(rows=4)
  trees = [
    batch,
    batch.replace(tokens_MRL=batch.tokens_MRL + 1),
    batch.replace(tokens_MRL=batch.tokens_MRL.reshape(2, 3, 4)),
    batch.replace(tokens_MRL=batch.tokens_MRL.view(np.uint32)),
    batch.replace(ref={"value_BKT": batch.ref["ref_logp_BKT"]}),
  ]
  digests = {distributed.digest(tree).tobytes() for tree in trees}
  assert len(digests) == len(trees)
  assert distributed.digest(_batch(rows=4)).tobytes() in digests


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"coordinator": "localhost:1"}, r"\['processes', 'index'\] not given"),
    ({"coordinator": "localhost:1", "processes": 2, "index": 2}, r"index=2.*0\.\.1"),
  ],
)
def test_initialize_refuses_incomplete_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    distributed.initialize(**arguments)
