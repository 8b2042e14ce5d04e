"""Training adapters: only they move, the base stays and is the reference."""

import dataclasses
import functools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from xpo_jax.config import optim, yaml_file
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Pretrained, Scratch
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import pack
from xpo_jax.models import hf_checkpoint, lora, peft, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.lora import Adapter
from xpo_jax.ops.token_stats import REF_LOGP
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import place
from xpo_jax.train import (
  checkpoint,
  metrics,
  offline,
  preflight,
  references,
  setup,
  state,
  step,
)
from xpo_jax.types import Layout

MODEL = Config(
  vocab=320,
  width=12,
  layers=2,
  heads=2,
  kv_heads=2,
  head_dim=6,
  mlp_width=16,
  tied=True,
  remat=False,
)
ADAPTER = Adapter(rank=2, alpha=4.0, targets="query|value|up")
RUN = Experiment(
  ObjectiveConfig("dpo"),
  Data("pairs", rows_per_step=4, microbatches=2, row_length=192, epochs=2, steps=6),
  Scratch(MODEL),
  Optimizer(learning_rate=1e-2, weight_decay=0.1, ema=0.9),
  Loop(log_every=1, checkpoint_every=2),
  MeshShape(data=1),
  adapter=ADAPTER,
)


def _quiet(text: str) -> None:
  del text


def _last_state(run_dir):
  manager = checkpoint.open_manager(run_dir / offline.CHECKPOINTS, keep=2)
  args = checkpoint.ocp.args
  tree = manager.restore(
    manager.latest_step(), args=args.Composite(state=args.StandardRestore())
  )
  manager.close()
  return tree["state"]


@pytest.fixture(scope="module")
def whole(datasets, tmp_path_factory):
  """The uninterrupted run, and its base."""
  run_dir = tmp_path_factory.mktemp("runs") / "whole"
  result = offline.train(RUN, run_dir, datasets=datasets, say=_quiet)
  assert result.finished and result.steps == 6
  base = transformer.model(MODEL).init(jax.random.fold_in(jax.random.key(0), 0))
  return run_dir, result, base


def test_only_adapters_are_trained_and_remembered(whole):
  run_dir, result, base = whole
  kept = _last_state(run_dir)
  shapes = {x.shape for x in jax.tree.leaves(lora.weights(MODEL, ADAPTER))}
  for tree in (kept["params"], kept["ema"], kept["opt_state"]):
    assert {x.shape for x in jax.tree.leaves(tree) if np.ndim(x)} <= shapes
  for part, pair in kept["params"]["lm"]["blocks"].items():
    assert np.abs(pair["b"]).max() > 1e-3, part
  same = jax.tree.map(np.array_equal, result.params["lm"], base)
  moved = {part for part, x in same["blocks"].items() if not all(x.values())}
  assert moved == {"query", "value", "up"}
  assert same["embedding"] and same["final_norm"]["scale"]
  summary = json.loads((run_dir / offline.SUMMARY).read_text())
  adapters = sum(x.size for x in jax.tree.leaves(kept["params"]))
  assert summary["parameters_trained"] == adapters
  size = sum(x.size for x in jax.tree.leaves(base))
  assert summary["parameters"] == size + adapters


def test_first_step_stands_at_the_reference(whole):
  first, *_, last = metrics.read(whole[0])
  assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
  assert first["kl_k3"] == pytest.approx(0, abs=1e-9)
  assert first["grad_norm"] > 0
  assert last["loss"] < first["loss"]


def test_reference_is_the_base(whole, datasets):
  run_dir, _, base = whole
  held = hf_checkpoint.load(run_dir / offline.POLICY)
  loaded = setup.inputs.load(RUN.data, RUN.data, datasets)
  examples, _, _ = setup.inputs.prepare(RUN, loaded, held.tokenizer, run_dir, datasets)
  batches = pack.eval_batches(examples, pack.PackSizes(4, row_length=192))
  run = references.scorer(transformer.model(MODEL), (REF_LOGP,))
  want = references.compute(batches, run, {"lm": base})
  kept = np.load(run_dir / "references" / "train" / "ref_logp_BKT.npy")
  np.testing.assert_allclose(kept, want.values["ref_logp_BKT"], atol=1e-6)


def test_policy_is_the_base_with_the_saved_adapter_merged(whole):
  run_dir, result, base = whole
  adapter, params = peft.load(run_dir / offline.ADAPTER, MODEL, base)
  assert (adapter.rank, adapter.alpha) == (2, 4.0)
  merged = lora.merged(base, params, adapter)
  written = hf_checkpoint.load(run_dir / offline.POLICY).params["lm"]
  jax.tree.map(np.testing.assert_array_equal, written, result.params["lm"])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), merged, written
  )
  # The average of the adapters, as without adapters that of the weights.
  ema = _last_state(run_dir)["ema"]["lm"]
  jax.tree.map(np.testing.assert_array_equal, params, ema)


def test_resumed_run_is_the_same_bit_for_bit(whole, datasets, tmp_path):
  run_dir = tmp_path / "run"

  def say(text):
    if text.startswith("step 3/"):
      os.kill(os.getpid(), signal.SIGTERM)

  stopped = offline.train(RUN, run_dir, datasets=datasets, say=say)
  assert not stopped.finished and stopped.steps == 4
  offline.resume(run_dir, RUN, datasets=datasets, say=_quiet)
  for name in (offline.POLICY, offline.ADAPTER):
    for file in (whole[0] / name).glob("*.safetensors"):
      assert (run_dir / name / file.name).read_bytes() == file.read_bytes()


def test_changed_base_is_refused(whole, datasets, tmp_path):
  base = tmp_path / "base"
  shutil.copytree(whole[0] / offline.POLICY, base)
  start = Pretrained(str(base), remat=False)
  experiment = dataclasses.replace(RUN, start=start)

  def say(text):
    if text.startswith("step 1/"):
      os.kill(os.getpid(), signal.SIGTERM)

  run_dir = tmp_path / "run"
  assert not offline.train(experiment, run_dir, datasets=datasets, say=say).finished
  weights = base / "model.safetensors"
  tensors = load_file(weights)
  tensors["model.norm.weight"] += 1
  save_file(tensors, weights)
  with pytest.raises(ValueError, match=r"changed\n  base_sha256: "):
    offline.resume(run_dir, datasets=datasets, say=_quiet)


def test_configuration_holds_the_adapter():
  assert yaml_file.from_dict(Experiment, yaml_file.to_dict(RUN)) == RUN
  changed = yaml_file.from_args(RUN, ["--adapter.rank", "4"])
  assert changed.adapter == dataclasses.replace(ADAPTER, rank=4)
  plain = dataclasses.replace(RUN, adapter=None)
  assert yaml_file.from_dict(Experiment, yaml_file.to_dict(plain)) == plain


def test_preflight_compiles_the_step_of_the_adapters(datasets):
  (budget,) = preflight.check(RUN, datasets)
  assert budget.bytes["arguments"] > 4 * budget.sizes["parameters"]


@functools.cache
def _updated(tiny, adapter, devices=1):
  """One step that reads the reference live: parameters before and after, metrics."""
  use = ObjectiveConfig("tdpo2")
  objective = use.build()
  batch = tiny.batches(Layout.PAIR)[0]
  trained = lora.trainable_model(tiny.model, adapter)
  params = {"lm": trained.init(jax.random.key(0))}
  noise = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32), params
  )
  optimizer = optim.Optimizer(learning_rate=1e-2, schedule="constant", clip=None)
  chain = optim.transform(optimizer)
  made = (params, chain, objective.init(), jax.random.key(1))
  base, mesh, shardings = tiny.ref, None, None
  first = state.create(*made)
  if devices > 1:
    mesh = meshes.make_mesh(2, 2, 2)
    first, shardings = state.create_on(mesh, trained, *made)
    axes = {"lm": tiny.model.logical_axes()}
    base = place.place_params(mesh, base, axes)
    batch = place.place_batch(mesh, batch)
  run = step.make_step(
    use.build,
    {"policy": tiny.model, "ref": tiny.model},
    optimizer,
    10,
    mesh=mesh,
    shardings=shardings,
    adapter=adapter,
  )
  frozen = {state.BASE: base, "ref": base}
  after, measured = run(first, frozen, batch, step.hparams(optimizer))
  return params, jax.device_get(after.params), jax.device_get(measured)


WHOLE = Adapter(rank=2, alpha=4.0)


def test_eight_devices_train_as_one(tiny):
  _, one, measured = _updated(tiny, WHOLE)
  _, eight, sharded = _updated(tiny, WHOLE, devices=8)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, eight)
  for name in ("loss", "grad_norm", "kl_k3"):
    np.testing.assert_allclose(measured[name], sharded[name], rtol=1e-4)


def test_l1_of_the_change_is_a_term_of_the_loss_and_shrinks_it(tiny):
  sparse = dataclasses.replace(WHOLE, l1=100.0)
  before, plain, without = _updated(tiny, WHOLE)
  _, after, measured = _updated(tiny, sparse)
  change = lora.delta(before["lm"], WHOLE)
  by_hand = 100 * sum(np.abs(x).sum() for x in jax.tree.leaves(change))
  assert measured["loss/l1"] == pytest.approx(by_hand, rel=1e-5)
  assert measured["loss"] == pytest.approx(without["loss"] + by_hand, rel=1e-6)
  sizes = [float(lora.l1(p["lm"], WHOLE)) for p in (before, plain, after)]
  assert sizes[2] < 0.95 * min(sizes[:2])
