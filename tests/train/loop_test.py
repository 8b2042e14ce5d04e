"""Whole runs, tiny: an interruption must not change a bit of what one leaves."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import pytest

from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import ADAPTED, MODEL
from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Scratch
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer, Precision
from xpo_jax.data.tokenise import Limits
from xpo_jax.models import hf_checkpoint
from xpo_jax.models.lora import Adapter
from xpo_jax.train import checkpoint, loop, metrics, run_directory

DATA = Data("pairs", rows_per_step=4, microbatches=2, row_length=192, epochs=3)
ONE = MeshShape(data=1)
# State, coupled rows, draws and two microbatches: all that a resume can get wrong.
RUN = Experiment(
  ObjectiveConfig("beta_dpo", alpha=0.6, keep=0.8),
  DATA,
  Scratch(MODEL),
  Optimizer(learning_rate=1e-2, warmup_steps=2, ema=0.9),
  Loop(log_every=1, eval_every=4, checkpoint_every=3),
  ONE,
  Evaluation(share=0.2),
)


@pytest.fixture(scope="module")
def whole(datasets, tmp_path_factory):
  """The uninterrupted run."""
  run_dir = tmp_path_factory.mktemp("runs") / "whole"
  result = loop.train(RUN, run_dir, datasets=datasets, say=quiet)
  assert result.finished and result.steps >= 8
  return run_dir


_CHILD = """
import os, pickle, signal, sys
from xpo_jax.train import loop
with open(sys.argv[1], "rb") as file:
  experiment, datasets = pickle.load(file)
def say(text):
  if text.startswith("step 5/"):  # checkpoints at 3 and 6
    os.kill(os.getpid(), signal.SIGKILL)
loop.train(experiment, sys.argv[2], datasets=datasets, say=say)
"""


def test_run_killed_between_checkpoints_resumes_bit_for_bit(whole, datasets, tmp_path):
  handed, run_dir = tmp_path / "handed", tmp_path / "killed"
  handed.write_bytes(pickle.dumps((RUN, datasets)))
  command = [sys.executable, "-c", textwrap.dedent(_CHILD), str(handed), str(run_dir)]
  died = subprocess.run(command, timeout=300, capture_output=True, text=True)
  assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
  assert len(metrics.read(run_dir)) >= 4  # beyond the checkpoint at step 3
  said = []
  result = loop.resume(run_dir, datasets=datasets, say=said.append)
  assert result.finished
  assert "continuing after step 3" in said
  assert compare.differences(run_dir, whole) == []


def _stopped_and_resumed(experiment, datasets, run_dir):
  """Trains with a SIGTERM in step 2, and resumes."""

  def say(text):
    if text.startswith("step 2/"):
      os.kill(os.getpid(), signal.SIGTERM)

  assert not loop.train(experiment, run_dir, datasets=datasets, say=say).finished
  assert loop.resume(run_dir, datasets=datasets, say=quiet).finished


def test_muon_with_moments_in_bfloat16_resumes_bit_for_bit(datasets, tmp_path):
  run = experiments.replace(
    RUN,
    optimizer=Optimizer("muon", learning_rate=1e-2),
    precision=Precision(moments="bfloat16"),
    evaluation=Evaluation(),
    steps=5,
  )
  loop.train(run, tmp_path / "whole", datasets=datasets, say=quiet)
  _stopped_and_resumed(run, datasets, tmp_path / "stopped")
  assert compare.differences(tmp_path / "stopped", tmp_path / "whole") == []


def test_adapters_on_a_base_in_bfloat16_resume_bit_for_bit(datasets, tmp_path):
  run = experiments.replace(ADAPTED, precision=Precision(base="bfloat16"))
  loop.train(run, tmp_path / "whole", datasets=datasets, say=quiet)
  _stopped_and_resumed(run, datasets, tmp_path / "stopped")
  assert compare.differences(tmp_path / "stopped", tmp_path / "whole") == []
  # The adapter is read onto its base again, which the run wrote.
  policy = hf_checkpoint.load(tmp_path / "whole" / run_directory.ADAPTER)
  dtypes = {x.dtype for x in jax.tree.leaves(policy.params["lm"])}
  assert dtypes == {np.dtype("float32")}


def test_sigterm_and_a_damaged_checkpoint_change_nothing(whole, datasets, tmp_path):
  # Held-out passes at the end only: that they come and go must not show either.
  experiment = experiments.replace(RUN, loop=Loop(log_every=1, checkpoint_every=3))
  run_dir = tmp_path / "run"

  def say(text):
    if text.startswith("step 5/"):
      os.kill(os.getpid(), signal.SIGTERM)

  stopped = loop.train(experiment, run_dir, datasets=datasets, say=say)
  # The signal came while step 5 was reported; it is seen after step 6.
  assert not stopped.finished and stopped.steps == 6
  (file,) = (run_dir / run_directory.CHECKPOINTS / "6").rglob(checkpoint.MANIFEST)
  file.unlink()
  said = []
  loop.resume(run_dir, experiment, datasets=datasets, say=said.append)
  assert any(text.startswith("damaged checkpoint passed over: step 6") for text in said)
  assert "continuing after step 3" in said
  without = ("time/", "eval/")
  assert compare.differences(run_dir, whole, without) == []


def test_resumed_run_goes_on_with_its_wandb_run(datasets, tmp_path, monkeypatch):
  begun, steps = [], []

  def init(**arguments):
    begun.append(arguments)
    return types.SimpleNamespace(
      log=lambda line, step: steps.append(step), finish=lambda: None
    )

  fake = types.SimpleNamespace(init=init, __spec__=None)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: fake)
  experiment = experiments.replace(RUN, loop=Loop(log_every=1, wandb="project"))

  def say(text):
    if text.startswith("step 2/"):
      os.kill(os.getpid(), signal.SIGTERM)

  stopped = loop.train(experiment, tmp_path / "run", datasets=datasets, say=say)
  assert not stopped.finished
  result = loop.resume(tmp_path / "run", datasets=datasets, say=quiet)
  assert result.finished and steps == list(range(1, result.steps + 1))
  first, second = begun
  assert first == second and first["resume"] == "allow"
  apart = run_directory.wandb_arguments("project", tmp_path, {"experiment": {}})
  assert apart["id"] != first["id"]


def test_ctrl_c_and_checkpoints_by_time_change_nothing(whole, datasets, tmp_path):
  # A checkpoint after every step, of which two are kept; and one line in four.
  every_step = Loop(log_every=4, checkpoint_minutes=1e-9)
  experiment = experiments.replace(RUN, loop=every_step)
  run_dir, said, refused = tmp_path / "run", [], []

  def say(text):
    said.append(text)
    if text.startswith("step 4/"):
      for second in (
        lambda: loop.train(experiment, run_dir, datasets=datasets, say=quiet),
        lambda: loop.resume(run_dir, datasets=datasets, say=quiet),
      ):
        with pytest.raises(ValueError, match=f"being written by process {os.getpid()}"):
          second()
        refused.append(second)
      signal.raise_signal(signal.SIGINT)

  stopped = loop.train(experiment, run_dir, datasets=datasets, say=say)
  assert not stopped.finished and stopped.stopped == "SIGINT" and stopped.steps == 5
  assert said[-1] == f"stopped by SIGINT after step 5: xpo resume {run_dir}"
  assert len(refused) == 2 and not (run_dir / run_directory.LOCK).exists()
  checkpoints = (run_dir / run_directory.CHECKPOINTS).iterdir()
  assert sorted(path.name for path in checkpoints if path.is_dir()) == ["4", "5"]
  total = len(metrics.read(whole))
  first = f"first checkpoint: after step {total}, or after 1e-09 minutes if that"
  assert any(text.startswith(first) for text in said)
  said.clear()
  loop.resume(run_dir, experiment, datasets=datasets, say=said.append)
  assert "continuing after step 5" in said
  assert compare.differences(run_dir, whole, ("time/", "eval/")) == []


def test_checkpoint_is_due_by_time_as_the_first_process_has_it(monkeypatch):
  monkeypatch.setattr(loop.time, "monotonic", lambda: 1000.0)
  assert not loop._is_time(10.0, saved=401.0, showing=False)
  assert loop._is_time(10.0, saved=400.0, showing=False)
  assert not loop._is_time(None, saved=0.0, showing=True)
  asked = []

  def agreed(flag):
    asked.append(flag)
    return True

  monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
  monkeypatch.setattr(loop.distributed, "agreed", agreed)
  assert not loop._is_time(10.0, saved=0.0, showing=False)
  assert not asked  # processes meet where metrics are fetched, and nowhere else
  assert loop._is_time(10.0, saved=999.0, showing=True) and asked == [False]


@pytest.mark.parametrize(
  ("done", "every", "minutes", "expected"),
  [
    (0, 30, 10.0, "after step 30, or after 10 minutes if that is sooner"),
    (30, 30, None, "after step 60"),
    (95, 30, None, "after step 100"),
    (0, None, 0.5, "after step 100, or after 0.5 minutes if that is sooner"),
  ],
)
def test_first_checkpoint_is_announced(done, every, minutes, expected):
  said = loop._first_checkpoint(done, 100, every, minutes)
  assert said == f"first checkpoint: {expected}"


def test_evaluation_is_no_time_of_a_step(tmp_path, monkeypatch):
  monkeypatch.setattr(loop.time, "perf_counter", lambda: 110.0)
  program = types.SimpleNamespace(
    line=lambda index, values, seconds: {"step": index + 1, "time/seconds": seconds},
    batch=None,
  )
  writer = metrics.open_writer(tmp_path)
  pending = [(0, {}), (1, {})]
  loop._write(program, tmp_path, writer, pending, clock=100.0, apart=4.0)
  metrics.close(writer)
  first, last = metrics.read(tmp_path)
  assert first["time/seconds"] == last["time/seconds"] == (110 - 100 - 4) / 2
  assert last["time/evaluation"] == 4 and "time/evaluation" not in first


@pytest.mark.parametrize(
  ("trained", "adapter", "expected"),
  [
    (200, None, "1,200 parameters, 200 trained"),
    (1200, None, "1,200 parameters, all trained"),
    (
      30,
      Adapter(rank=4),
      "1,200 parameters, 30 (2.50%) trained: adapters of rank 4",
    ),
  ],
)
def test_screen_says_what_is_trained(trained, adapter, expected):
  sizes = {"parameters": 1200, "parameters_trained": trained}
  assert loop._parameters(sizes, adapter) == expected


def test_finished_run_is_complete(whole):
  lines = metrics.read(whole)
  steps = len(lines)
  assert [line["step"] for line in lines] == list(range(1, steps + 1))
  assert [i for i, line in enumerate(lines, 1) if "eval/loss" in line] == sorted(
    {*range(4, steps + 1, 4), steps}
  )
  for line in lines:
    assert ("eval/loss" in line) == ("time/evaluation" in line)
  wanted = "loss loss/beta_dpo reward_accuracy reward_margin logp_chosen logp_rejected"
  wanted += " kl_k3 entropy length_chosen grad_norm learning_rate padding epoch"
  wanted += " time/seconds time/tokens_per_second eval/reward_accuracy"
  assert set(wanted.split()) <= set(lines[-1])
  # Policy = reference, so every margin is 0 and every beta gives log 2.
  assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
  assert lines[0]["kl_k3"] == pytest.approx(0, abs=1e-6)
  summary = json.loads((whole / run_directory.SUMMARY).read_text())
  assert summary["steps"] == steps and summary["final"] == lines[-1]
  counts = json.loads((whole / run_directory.COUNTS).read_text())
  held_out = counts["splits"]["held_out"]["examples"]
  assert counts["rows"] == held_out + counts["splits"]["train"]["examples"]


def test_exported_policy_is_the_average_of_the_weights(whole):
  held = hf_checkpoint.load(whole / run_directory.POLICY)
  embedding = held.params["lm"]["embedding"]
  same = [
    x.shape == embedding.shape and (x == embedding).all() for x in compare.leaves(whole)
  ]
  assert sum(same) == 1  # the average; neither the weights nor a moment
  assert len(held.tokenizer) <= MODEL.vocab


def test_changed_data_are_refused_with_the_difference(whole, datasets):
  changed = datasets | {"pairs": datasets["pairs"][:-1]}
  with pytest.raises(ValueError, match=r"its data changed\n(.*\n)*  rows: 40 -> 39"):
    loop.resume(whole, datasets=changed, say=quiet)


def test_changed_configuration_is_refused_with_the_difference(whole, datasets):
  other = experiments.replace(RUN, seed=1)
  with pytest.raises(ValueError, match=r"configuration changed\n  seed: 0 -> 1"):
    loop.resume(whole, other, datasets=datasets, say=quiet)


def test_edited_config_file_is_refused_against_the_checkpoint(
  whole, datasets, tmp_path
):
  config = whole / "config.yaml"
  text = config.read_text()
  edited = text.replace("learning_rate: 0.01", "learning_rate: 0.02")
  try:
    config.write_text(edited)
    with pytest.raises(ValueError, match=r"config\.yaml differs from its checksum"):
      loop.resume(whole, datasets=datasets, say=quiet)
    config.write_text(edited[: edited.index("# checksum")])
    with pytest.raises(ValueError, match=r"learning_rate: 0.01 -> 0.02"):
      loop.resume(whole, datasets=datasets, say=quiet)
  finally:
    config.write_text(text)


def test_changed_code_is_warned_of(whole, datasets, monkeypatch):
  monkeypatch.setattr(yaml_file, "code_digest", lambda: "another")
  said = []
  assert loop.resume(whole, datasets=datasets, say=said.append).finished
  assert any("warning" in text and "code.sha256" in text for text in said)


@pytest.mark.nonfinite
def test_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(datasets, tmp_path):
  wild = dataclasses.replace(RUN.optimizer, learning_rate=1e38)
  run_dir = tmp_path / "run"
  with pytest.raises(
    run_directory.NonFiniteLoss, match=r"step \d+: loss is.*nan.*batch.npz"
  ):
    loop.train(
      experiments.replace(RUN, optimizer=wild), run_dir, datasets=datasets, say=quiet
    )
  last = metrics.read(run_dir)[-1]
  assert not np.isfinite([last["loss"], last["grad_norm"]]).all()
  saved = np.load(run_dir / run_directory.NONFINITE / "batch.npz")
  assert saved["tokens_MRL"].shape == (2, 2, DATA.row_length)
  assert saved["weight_MB"].sum() > 0
  # Nothing that is not finite was checkpointed.
  assert not (run_dir / run_directory.CHECKPOINTS / str(int(last["step"]))).exists()


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"mesh": MeshShape(data=3)}, "places for 8 devices"),
    ({"mesh": MeshShape(data=4, fsdp=2)}, "rows=4 of a step do not split evenly"),
    ({"data": Data("nowhere.jsonl")}, "nowhere.jsonl': no such file"),
    ({"data": Data("paris")}, "or one of the records handed over: pairs"),
    (
      {"data": Data("demos", rows_per_step=4)},
      "the data are DEMO, the objective needs",
    ),
    ({"data": dataclasses.replace(DATA, row_length=9)}, "row_length: 9 is shorter"),
    ({"data": dataclasses.replace(DATA, limits=Limits(prompt=2))}, "bad records"),
    ({"data": dataclasses.replace(DATA, steps=10**6)}, "raise epochs"),
  ],
)
def test_bad_run_is_refused_and_leaves_no_directory(datasets, tmp_path, change, says):
  experiment = experiments.replace(RUN, **change)
  with pytest.raises(ValueError, match=says):
    loop.train(experiment, tmp_path / "run", datasets=datasets, say=quiet)
  assert not (tmp_path / "run").exists()


def test_run_directory_that_exists_is_refused(datasets, tmp_path):
  with pytest.raises(ValueError, match=r"exists; name another one.*xpo resume"):
    loop.train(RUN, tmp_path, datasets=datasets, say=quiet)


def test_defaults_show_every_tenth_step_and_checkpoint_by_time_and_the_last(
  datasets, tmp_path, monkeypatch
):
  asked = []

  def third(minutes, saved, showing):
    asked.append((minutes, saved))
    return len(asked) == 3

  monkeypatch.setattr(loop, "_is_time", third)
  data = dataclasses.replace(DATA, steps=12, epochs=5)
  quiet = experiments.replace(RUN, data=data, loop=Loop(), evaluation=Evaluation())
  run_dir, said = tmp_path / "run", []
  loop.train(quiet, run_dir, datasets=datasets, say=said.append)
  steps = [text.split("  ")[0] for text in said if text.startswith("step ")]
  assert steps == ["step 1/12", "step 10/12", "step 12/12"]
  assert len(metrics.read(run_dir)) == 12  # the file has every step
  kept = (run_dir / run_directory.CHECKPOINTS).iterdir()
  assert sorted(path.name for path in kept if path.is_dir()) == ["12", "3"]
  assert {minutes for minutes, _ in asked} == {10.0} and len(asked) == 12
  clocks = [saved for _, saved in asked]
  assert clocks[0] == clocks[2] < clocks[3] == clocks[11]  # set anew by the checkpoint


def test_resuming_what_is_no_run_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml"):
    loop.resume(tmp_path, say=quiet)
