"""Loss and gradient of DPO and a reward model on eight devices equal those on one;
communication."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from xpo_jax import objectives, scored
from xpo_jax.data import pack, tokenise
from xpo_jax.models import heads, score, transformer
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import place
from xpo_jax.types import Layout

# No size that a collective may see (8, 16, 24, their parts) is V or a part of V.
VOCAB, WIDTH, CHUNK = 88, 16, 3
CONFIG = transformer.Config(
  vocab=VOCAB, width=WIDTH, layers=2, heads=8, kv_heads=8, head_dim=2, mlp_width=24
)
SPLITS = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (4, 2, 1), (2, 1, 4), (1, 2, 4), (2, 2, 2)]


@functools.cache
def _inputs():
  """The parameters of policy and reference, and a batch of 8 rows, 16 groups."""
  rng = np.random.default_rng(0)
  examples = []
  for n in range(16):
    texts = [rng.integers(1, VOCAB, size).astype(np.int32) for size in (2, 3, 2)]
    example = tokenise.Example(str(n), texts[0], tuple(texts[1:]), Layout.PAIR)
    examples.append(example)
  batch = pack.plan(examples, pack.PackSizes(8, row_length=16))[0]
  init = jax.jit(jax.vmap(transformer.model(CONFIG).init))
  both = init(jax.random.split(jax.random.key(0)))
  both["head"] *= 20  # logits of about one: the two models differ
  policy, ref = ({"lm": jax.tree.map(lambda x, i=i: x[i], both)} for i in (0, 1))
  return policy, ref, batch


def _loss(policy, ref, batch, mesh=None, chunk=None):
  model, objective = transformer.model(CONFIG), objectives.dpo(beta=0.5)
  record = score.score(
    {"policy": model, "ref": model},
    {"policy": policy, "ref": ref},
    objective.stats,
    jax.tree.map(lambda x: x[0], batch),
    mesh=mesh,
    chunk=chunk,
  )
  return scored.evaluate(objective, record).loss


@pytest.fixture(scope="module")
def one_device():
  return jax.device_get(jax.jit(jax.value_and_grad(_loss))(*_inputs()))


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_dpo_on_eight_devices_equals_one_and_gathers_no_logits(split, one_device):
  mesh = meshes.make_mesh(*split)
  policy, ref, batch = _inputs()
  axes = {"lm": transformer.model(CONFIG).logical_axes()}
  placed = (
    place.place_params(mesh, policy, axes),
    place.place_params(mesh, ref, axes),
    place.place_batch(mesh, batch),
  )
  large = [x for x in jax.tree.leaves(placed[0]) if x.size >= WIDTH**2]
  assert len(large) == 9  # four of attention, three of the MLP, two tables
  for x in large:
    parts = {shard.data.size for shard in x.addressable_shards}
    assert parts == {x.size // (mesh.shape["fsdp"] * mesh.shape["tensor"])}

  sharded = functools.partial(_loss, mesh=mesh, chunk=CHUNK)
  lowered = jax.jit(jax.value_and_grad(sharded)).lower(*placed)
  # The partitioner runs all the same; only machine code is less optimised.
  compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
  result = compiled(*placed)
  for x, d_x in zip(*map(jax.tree.leaves, (placed[0], result[1])), strict=True):
    if x.size >= WIDTH**2:  # no device has the whole gradient
      assert d_x.sharding.is_equivalent_to(x.sharding, x.ndim)
  loss, grad = jax.device_get(result)
  assert abs(one_device[0] - np.log(2)) > 0.01
  chex.assert_trees_all_close((loss, grad), one_device, rtol=1e-5, atol=1e-5)
  assert _moved(compiled) and not _moved_logits(compiled, mesh)


def test_reward_model_on_eight_devices_equals_one():
  policy, _, batch = _inputs()
  model, objective = transformer.model(CONFIG), objectives.bradley_terry()
  head = heads.init_reward_head(jax.random.key(1), WIDTH)
  params = policy | {"value": head}

  def loss(params, batch, mesh=None):
    batch = jax.tree.map(lambda x: x[0], batch)
    models, roles = {"policy": model}, {"policy": params}
    record = score.score(models, roles, objective.stats, batch, mesh=mesh)
    return scored.evaluate(objective, record).loss

  expected = jax.jit(jax.value_and_grad(loss))(params, batch)
  assert abs(expected[0] - np.log(2)) > 0.01
  mesh = meshes.make_mesh(2, 2, 2)
  axes = {"lm": model.logical_axes(), "value": heads.logical_axes()}
  placed = place.place_params(mesh, params, axes), place.place_batch(mesh, batch)
  sharded = jax.jit(jax.value_and_grad(functools.partial(loss, mesh=mesh)))
  chex.assert_trees_all_close(
    jax.device_get(sharded(*placed)), jax.device_get(expected), rtol=1e-5, atol=1e-5
  )


def _moved(compiled):
  """Shapes of what collectives of a compiled program return."""
  moved = []
  pattern = r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute"
  pattern += r"|reduce-scatter)(?:-start)?\("
  for result in re.findall(pattern, compiled.as_text()):
    for dims in re.findall(r"\w+\[([\d,]*)\]", result):
      moved.append(tuple(int(d) for d in dims.split(",") if d))
  return moved


def _moved_logits(compiled, mesh):
  """Those of them with a vocabulary axis that are no table [vocabulary, width]."""
  vocab = {VOCAB, VOCAB // mesh.shape["tensor"]}
  width = {WIDTH, WIDTH // mesh.shape["fsdp"]}
  collectives = [dims for dims in _moved(compiled) if vocab & set(dims)]
  return [
    d for d in collectives if not (len(d) == 2 and d[0] in vocab and d[1] in width)
  ]


def test_moved_logits_are_detected_where_they_are_gathered():
  mesh = meshes.make_mesh(2, 2, 2)
  by_vocab = NamedSharding(mesh, P(("data", "fsdp"), "tensor"))
  logits = jax.device_put(jnp.ones((24, VOCAB)), by_vocab)
  whole = jax.jit(jnp.sin, out_shardings=NamedSharding(mesh, P()))
  assert _moved_logits(whole.lower(logits).compile(), mesh)
