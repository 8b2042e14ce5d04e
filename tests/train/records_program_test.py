"""The program of a run on records: its reference, batches, held-out data."""

import dataclasses
import gc
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.quiet import quiet
from tests.train.tiny_runs import ADAPTED, MODEL
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, MeshShape, Pretrained, Scratch
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import pack, sealed_files
from xpo_jax.data.records import Rated
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.objectives import dpo
from xpo_jax.ops import token_stats
from xpo_jax.train import (
  loading,
  loop,
  metrics,
  records_program,
  references,
  run_directory,
)
from xpo_jax.train.loading import Inputs

RUN = Experiment(
  ObjectiveConfig("dpo"),
  Data("pairs", rows_per_step=4, microbatches=2, row_length=192, epochs=2),
  Scratch(MODEL),
  Optimizer(learning_rate=1e-2),
  mesh=MeshShape(data=1),
  evaluation=Evaluation(share=0.2),
)


def _prepare(experiment, run_dir, datasets):
  run_dir.mkdir(exist_ok=True)
  return records_program.prepare(experiment, run_dir, Inputs(), datasets, quiet)


def _embeddings() -> int:
  """Live arrays of the embedding's shape: weights, moments, copies."""
  gc.collect()
  return sum(x.shape == (MODEL.vocab, MODEL.width) for x in jax.live_arrays())


def needs_live_reference(beta: float = 0.1):
  """A DPO that also asks for the KL over the vocabulary, which cannot be cached."""
  made = dpo(beta)
  return made._replace(stats=made.stats | {token_stats.REF_KL})


def test_reference_is_gone_where_it_can_be_cached_and_stays_where_not(
  datasets, tmp_path
):
  kept = {}
  for name, use in (("dpo", "dpo"), ("live", needs_live_reference)):
    experiment = experiments.replace(
      RUN, objective=ObjectiveConfig(use), evaluation=Evaluation()
    )
    before = _embeddings()
    program = _prepare(experiment, tmp_path / name, datasets)
    kept[name] = _embeddings() - before
    del program
  # Weights and Adam's two moments; the reference makes four.
  assert kept == {"dpo": 3, "live": 4}


@pytest.fixture(scope="module")
def program(datasets, tmp_path_factory):
  return _prepare(RUN, tmp_path_factory.mktemp("program"), datasets)


def test_program_says_what_it_will_do(program):
  assert program.total == program.sizes["steps"] > 2
  assert program.sizes["rows_per_step"] == 4 and program.sizes["microbatches"] == 2
  assert program.batch(0).tokens_MRL.shape == (2, 2, program.sizes["shape_L"])
  assert f"{program.total} steps of 4 rows" in program.headline
  assert program.export_base is None


def test_a_reward_model_keeps_no_start_on_the_device(datasets, tmp_path):
  reward = experiments.replace(
    RUN, objective=ObjectiveConfig("bradley_terry"), evaluation=Evaluation()
  )
  before = _embeddings()
  program = _prepare(reward, tmp_path / "run", datasets)
  assert _embeddings() - before == 3 and "value" in program.state.params


def test_metric_of_rejected_rows_is_absent_where_none_is_rejected(tmp_path):
  rows = [
    Rated(str(i), f"the film {i} was", " good.", desirable=True) for i in range(8)
  ]
  kto = experiments.replace(RUN, objective=ObjectiveConfig("kto"), path="thumbs")
  run = experiments.replace(kto, evaluation=Evaluation(), steps=None)
  result = loop.train(run, tmp_path / "run", datasets={"thumbs": rows}, say=quiet)
  for line in metrics.read(result.run_dir):
    assert "logp_chosen" in line and "reward_chosen" in line
    assert not [name for name in line if name.endswith("_rejected")]


def test_evaluation_reads_the_state_and_moves_nothing_of_it(program):
  before = [np.array(x) for x in jax.tree.leaves(program.state.params)]
  first, second = (jax.device_get(program.evaluate(program.state)) for _ in range(2))
  assert first == second and first["eval/loss"] == pytest.approx(np.log(2), abs=1e-5)
  after = jax.tree.leaves(program.state.params)
  assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_step_takes_the_batch_of_its_index_wherever_it_starts(datasets, tmp_path):
  """`advance` made ahead and made anew give the same metrics."""
  lines = {}
  for name, indices in (("in turn", (0, 1)), ("from the second", (1,))):
    program = _prepare(RUN, tmp_path / name, datasets)
    now = program.state
    for index in indices:
      now, measured = program.advance(now, index)
    lines[name] = jax.device_get(measured)
  for name in ("length_chosen", "length_rejected", "padding"):  # of the batch alone
    assert lines["in turn"][name] == lines["from the second"][name]


def test_held_out_examples_are_not_trained_on(datasets, tmp_path, program):
  loaded = records_program.check(RUN, datasets).loaded
  held = records_program.held_out(RUN, tmp_path, loaded, program.tokenizer, datasets)
  begin = loading.LoadedStart(program.model.config, {}, program.tokenizer)
  train, apart, _ = records_program.examples(RUN, begin, loaded, tmp_path, datasets)
  assert {e.uid for e in held.examples} == {e.uid for e in apart}
  assert not {e.uid for e in train} & {e.uid for e in apart}
  assert len(train) + len(apart) == len(datasets["pairs"])
  prompts = {ids.tobytes() for ids in held.prompts}
  assert prompts == {e.prompt.tobytes() for e in held.examples}
  assert len(prompts) == len(held.prompts)
  whole = experiments.replace(RUN, evaluation=Evaluation())
  with pytest.raises(ValueError, match=r"holds no data out; set Evaluation\.share"):
    records_program.held_out(whole, tmp_path, loaded, program.tokenizer, datasets)


def test_records_of_a_function_are_read_when_the_run_starts():
  made = experiments.replace(RUN, path=Configured(never))
  assert records_program.check(made, {}) == Inputs(None)


def never():
  """Makes records; a check must not."""
  raise AssertionError


def test_adapters_start_at_the_reference(adapted):
  first, *_, last = metrics.read(adapted.run_dir)
  assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
  assert first["kl_k3"] == pytest.approx(0, abs=1e-9)
  assert first["grad_norm"] > 0
  assert last["loss"] < first["loss"]


def test_reference_of_adapters_is_their_base(adapted, datasets):
  run_dir, _, base = adapted
  written = hf_checkpoint.load(run_dir / run_directory.ADAPTER)
  loaded = loading.load(ADAPTED.data, ADAPTED.data, datasets)
  begin = loading.LoadedStart(*written)
  examples, _, _ = records_program.examples(ADAPTED, begin, loaded, run_dir, datasets)
  batches = pack.eval_batches(examples, pack.PackSizes(4, row_length=192))
  stats = (token_stats.REF_LOGP,)
  score = references.scorer(transformer.model(ADAPTED.start.model), stats)
  want = references.compute(batches, score, {"lm": base})
  cached = np.load(run_dir / run_directory.REFERENCES / "train" / "ref_logp_BKT.npy")
  np.testing.assert_allclose(cached, want.values["ref_logp_BKT"], atol=1e-6)


def test_changed_base_is_refused(adapted, datasets, tmp_path):
  base = tmp_path / "base"
  shutil.copytree(adapted.run_dir / run_directory.BASE, base)
  (base / sealed_files.MANIFEST).unlink()  # a directory of one's own has none
  start = Pretrained(str(base), remat="none")
  experiment = dataclasses.replace(ADAPTED, start=start)

  def say(text):
    if text.startswith("step 1/"):
      os.kill(os.getpid(), signal.SIGTERM)

  run_dir = tmp_path / "run"
  assert not loop.train(experiment, run_dir, datasets=datasets, say=say).finished
  weights = base / "model.safetensors"
  tensors = load_file(weights)
  tensors["model.norm.weight"] += 1
  save_file(tensors, weights)
  with pytest.raises(ValueError, match=r"changed\n  base_sha256: "):
    loop.resume(run_dir, datasets=datasets, say=quiet)
