"""What a run carries: parameters by what is trained, heads, averages, placement."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from tests.train import compare
from tests.train.tiny_runs import ADAPTED
from xpo_jax import objectives
from xpo_jax.config import command_line, optim, yaml_file
from xpo_jax.config.experiment import Experiment
from xpo_jax.models import heads, lora
from xpo_jax.models.lora import Adapter
from xpo_jax.sharding import mesh as meshes
from xpo_jax.train import run_directory, state

ADAPTER = Adapter(rank=2, alpha=4.0)


def _create(params, **changes):
  chain = optim.transform(optim.Optimizer(learning_rate=1e-2))
  return state.create(params, chain, (), jax.random.key(0), **changes)


def test_state_is_of_copies_so_that_it_can_be_donated(tiny):
  made = _create(tiny.policy, ema=True)
  for tree in (made.params, made.ema):
    pairs = zip(*map(jax.tree.leaves, (tree, tiny.policy)), strict=True)
    assert all(a is not b and np.array_equal(a, b) for a, b in pairs)
  assert int(made.step) == 0 and _create(tiny.policy).ema is None


def test_state_on_a_mesh_is_the_state_on_one_device(tiny):
  chain = optim.transform(optim.Optimizer(learning_rate=1e-2))
  mesh = meshes.make_mesh(2, 2, 2)
  split, shardings = state.create_on(
    mesh, tiny.model, tiny.policy, chain, (), jax.random.key(0), ema=True
  )
  whole = _create(tiny.policy, ema=True)
  for a, b in zip(
    jax.tree.leaves((split.params, split.opt_state, split.ema)),
    jax.tree.leaves((whole.params, whole.opt_state, whole.ema)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(
    jax.tree.leaves(split.params), jax.tree.leaves(shardings.params), strict=True
  ):
    assert a.sharding == b


def test_head_is_there_where_the_objective_reads_one(tiny):
  fresh = heads.init_reward_head(jax.random.key(1), tiny.model.config.width)
  reads, does_not = objectives.bradley_terry(), objectives.dpo()
  added = state.with_heads(reads, tiny.policy, fresh)
  assert added["value"] is fresh
  other = jax.tree.map(jnp.ones_like, fresh)
  kept = state.with_heads(reads, tiny.policy | {"value": other}, fresh)
  assert kept["value"] is other
  assert set(state.with_heads(does_not, kept, fresh)) == {"lm"}


def test_weights_to_export_are_the_average_where_one_is_kept(tiny):
  made = _create(tiny.policy, ema=True)
  made = made.replace(ema=tiny.ref)
  assert state.final_params(made) is tiny.ref
  assert state.final_params(made.replace(ema=None)) is made.params


def test_policy_of_adapters_is_the_base_with_them_merged(tiny):
  trained = lora.trainable_model(tiny.model, ADAPTER)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32),
    trained.init(jax.random.key(0)),
  )
  frozen = {state.BASE: tiny.ref}
  merged = state.merged({"lm": params}, frozen, ADAPTER)
  attached = state.policy({"lm": params}, frozen, ADAPTER)
  change = lora.delta(tiny.ref["lm"], params, ADAPTER)["blocks"]
  assert change
  for part, pair in change.items():
    want = tiny.ref["lm"]["blocks"][part]["kernel"] + pair["kernel"]
    got = merged["lm"]["blocks"][part]["kernel"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert jax.tree.structure(attached) != jax.tree.structure(merged)
  assert state.merged(tiny.policy, {}, None) is tiny.policy
  assert state.roles(tiny.policy, {}, None) == {"policy": tiny.policy}


def test_only_adapters_are_trained_and_checkpointed(adapted):
  run_dir, result, base = adapted
  kept, model = compare.state(run_dir), ADAPTED.start.model
  shapes = {x.shape for x in jax.tree.leaves(lora.weights(model, ADAPTED.adapter))}
  for tree in (kept["params"], kept["ema"], kept["opt_state"]):
    assert {x.shape for x in jax.tree.leaves(tree) if np.ndim(x)} <= shapes
  for part, pair in kept["params"]["lm"]["blocks"].items():
    assert np.abs(pair["b"]).max() > 1e-3, part
  same = jax.tree.map(np.array_equal, result.params["lm"], base)
  moved = {part for part, x in same["blocks"].items() if not all(x.values())}
  assert moved == {"query", "value", "up"}
  assert same["embedding"] and same["final_norm"]["scale"]
  summary = json.loads((run_dir / run_directory.SUMMARY).read_text())
  adapters = sum(x.size for x in jax.tree.leaves(kept["params"]))
  assert summary["parameters_trained"] == adapters
  size = sum(x.size for x in jax.tree.leaves(base))
  assert summary["parameters"] == size + adapters


def test_configuration_holds_the_adapter():
  assert yaml_file.from_dict(Experiment, yaml_file.to_dict(ADAPTED)) == ADAPTED
  changed = command_line.from_args(ADAPTED, ["--adapter.rank", "4"])
  assert changed.adapter == dataclasses.replace(ADAPTED.adapter, rank=4)
  plain = dataclasses.replace(ADAPTED, adapter=None)
  assert yaml_file.from_dict(Experiment, yaml_file.to_dict(plain)) == plain
