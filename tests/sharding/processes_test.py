"""Two processes train what one does: from the command line, into one directory."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import xla_flags
from tests.quiet import quiet
from tests.sharding import processes
from tests.train import compare
from xpo_jax.config import experiment as experiments
from xpo_jax.train import loop, run_directory, validate

TOLERANCE = 1e-6
RECIPE = """
from xpo_jax.config import experiment as experiments
from tests.sharding import processes

def experiment():
  return {}
"""


def _pairs(path, wrong=0):
  words = "film plot cast good bad dull fine".split()
  with path.open("w") as file:
    for i in range(24):
      chosen, rejected = words[i % 7], words[(i + 1 + wrong) % 7]
      row = {"prompt": f"the {i}", "chosen": f" {chosen}", "rejected": f" {rejected}"}
      file.write(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The directory of both processes, and what each wrote to standard error."""
  directory = tmp_path_factory.mktemp("processes")
  for index in range(2):
    (directory / f"host{index}").mkdir()
    _pairs(directory / f"host{index}" / "pairs.jsonl", wrong=index)
  path = str(directory / "host0" / "pairs.jsonl")
  offline = f"experiments.replace(processes.OFFLINE, path={path!r})"
  (directory / "offline.py").write_text(RECIPE.format(offline))
  (directory / "online.py").write_text(RECIPE.format("processes.ONLINE"))
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  started = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "tests.sharding.processes"),
        *(str(index), address, str(directory)),
      ],
      env=os.environ | {"XLA_FLAGS": xla_flags.devices(4), "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    said = [process.communicate(timeout=900)[1] for process in started]
  finally:
    for process in started:  # a dead one leaves the other waiting
      process.kill()
  assert [process.returncode for process in started] == [0, 0], said
  return directory, said


def _equal(run_dir, whole):
  for ours, theirs in zip(compare.lines(run_dir), compare.lines(whole), strict=True):
    assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
  for ours, theirs in zip(compare.leaves(run_dir), compare.leaves(whole), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def _files(run_dir):
  """Files of a run, but for those of Orbax, whose arrays are in one file a process."""
  every = (path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file())
  return sorted(
    str(path)
    for path in every
    if path.parts[0] not in (run_directory.CHECKPOINTS, "tensorboard")
  )


def test_offline_run_of_two_processes_is_that_of_one(trained, tmp_path):
  directory, said = trained
  for each in said:
    assert "offline ended with 0" in each
  experiment = experiments.replace(
    processes.OFFLINE, path=str(directory / "host0" / "pairs.jsonl")
  )
  assert loop.train(experiment, tmp_path / "one", say=quiet).finished
  _equal(directory / "offline", tmp_path / "one")
  assert _files(directory / "offline") == _files(tmp_path / "one")


def test_online_run_stopped_on_one_of_two_processes_goes_on_in_one(trained, tmp_path):
  directory, said = trained
  for each in said:
    assert "online ended with 75" in each
  done = len(compare.lines(directory / "online"))
  assert processes.STOP_AFTER <= done < processes.ONLINE.data.iterations
  assert loop.resume(directory / "online", say=quiet).finished
  assert loop.train(processes.ONLINE, tmp_path / "one", say=quiet).finished
  _equal(directory / "online", tmp_path / "one")
  assert _files(directory / "online") == _files(tmp_path / "one")


@pytest.mark.parametrize(
  ("what", "names"),
  [
    ("configuration", "optimizer.learning_rate: 0.001 -> 0.002"),
    ("data", "its data is not that of process 0\n    pairs.jsonl: "),
    ("code", "xpo_jax: "),
    ("directory0", "config.yaml here, which process 0 wrote"),
  ],
)
def test_processes_that_differ_are_refused_by_all(trained, what, names):
  directory, said = trained
  for index, each in enumerate(said):
    name = what if what != "directory0" else f"directory{index}"
    before, _, _ = each.partition(f"{name} ended with 2")
    message = before.rpartition(" ended with ")[2]
    assert "process 1 (pid " in message and names in message
  assert not (directory / what).exists()


def test_batch_is_cut_by_the_mesh_and_not_by_process(trained):
  # Rows in two parts; three times the sum of squares below 24; flags of process 0.
  total = 3 * sum(n * n for n in range(24))
  for each in trained[1]:
    placed = f"PLACED {{(1, 2, 6)}} {total} True (True, False) True"
    assert f"{placed} ['a', 'b', 'c'] ['d']" in each


def test_one_device_is_refused_where_there_are_several_processes(monkeypatch):
  one = dataclasses.replace(processes.OFFLINE, mesh=experiments.MeshShape(data=1))
  monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="one device for 2 processes; leave"):
    validate.make_mesh(one.mesh)
