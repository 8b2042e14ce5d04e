"""Checkpoints in a bucket are those of a run directory; gcsfs and TensorStore read and
write them through an emulator of Google's storage."""

import importlib.util
import os
import signal
import socket

import jax
import numpy as np
import pytest
from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects

from tests.train import compare
from tests.train.tiny_runs import PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.experiment import Loop
from xpo_jax.data import buckets, sealed_files
from xpo_jax.sharding import distributed
from xpo_jax.train import checkpoint, loop


def _download(request, response, storage, original=objects.download):
  """Reads an object with its generation, as Google's storage does."""
  original(request, response, storage)
  if response.status < 400:
    path = request.params["bucket_name"], request.params["object_id"]
    response["x-goog-generation"] = storage.get_file_obj(*path)["generation"]


@pytest.fixture(scope="module")
def storage():
  """The environment of clients of an emulator that has one bucket, "bucket"."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  emulator = server.create_server(
    "127.0.0.1", port, in_memory=True, default_bucket="bucket"
  )
  emulator.start()
  address = f"http://127.0.0.1:{port}"
  names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(objects, "download", _download)
    for name in names:
      patch.setenv(name, address)
    patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    patch.setenv("NO_GCE_CHECK", "true")  # asks no network for credentials
    yield
  emulator.stop()


def _experiment(checkpoints):
  return experiments.replace(PLAIN, iterations=4, loop=Loop(checkpoints=checkpoints))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("whole") / "run"
  loop.train(_experiment(None), run_dir)
  return run_dir


def _stopped(place, run_dir):
  """Ends a run of that place with a signal; returns the steps that it did."""

  def say(text):
    if text.startswith("step 2/"):
      os.kill(os.getpid(), signal.SIGTERM)

  result = loop.train(_experiment(place), run_dir, say=say)
  assert result.stopped == "SIGTERM" and not result.finished
  return result.steps


def _leaves(place):
  manager = checkpoint.open_manager(buckets.directory(place), keep=2)
  state = checkpoint.read(manager, manager.latest_step())
  manager.close()
  return jax.tree.leaves(state)


def test_run_with_checkpoints_in_a_bucket_resumes_bit_for_bit(storage, whole, tmp_path):
  place = "gs://bucket/runs/first"
  steps = _stopped(place, tmp_path / "run")
  assert not (tmp_path / "run" / "checkpoints").exists()
  newest = buckets.directory(place) / str(steps)
  assert sealed_files.damage(newest) is None
  # A step that is damaged is passed over, and done again.
  file = newest / "state" / "_METADATA"
  file.write_bytes(file.read_bytes() + b" ")
  said = []
  assert loop.resume(tmp_path / "run", say=said.append).finished
  assert any("damaged checkpoint passed over" in line for line in said)
  assert buckets.names(buckets.directory(place)) == ["3", "4"]
  assert compare.lines(tmp_path / "run") == compare.lines(whole)
  for ours, theirs in zip(_leaves(place), compare.leaves(whole), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_place_with_checkpoints_of_a_run_is_for_it_alone(storage, tmp_path):
  place = tmp_path / "elsewhere"
  loop.train(_experiment(str(place)), tmp_path / "run")
  assert buckets.names(place) == ["3", "4"]
  assert not (tmp_path / "run" / "checkpoints").exists()
  for step in ("3", "4"):
    (buckets.directory("gs://bucket/taken") / step / "file").write_bytes(b"")
  for own in (str(place), "gs://bucket/taken"):
    with pytest.raises(ValueError, match="has checkpoints, of the steps 3, 4: name a"):
      loop.train(_experiment(own), tmp_path / "other")
    assert not (tmp_path / "other").exists()
  place.rename(tmp_path / "away")
  with pytest.raises(ValueError, match="elsewhere does not exist here: mount it, or"):
    loop.resume(tmp_path / "run")
  assert not place.exists()


def test_bucket_that_cannot_be_written_is_refused(storage, tmp_path):
  place = "gs://no_such_bucket/run"
  with pytest.raises(
    ValueError, match=r"Loop.checkpoints gs:.* cannot be written here"
  ):
    loop.train(_experiment(place), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "place, says",
  [
    ("runs/first", "runs/first is relative, and a run may be resumed from elsewhere"),
    ("az://bucket/run", "is of no known bucket; allowed: gs://, s3://"),
  ],
)
def test_name_of_no_place_is_refused_by_its_field(place, says):
  with pytest.raises(ValueError, match=f"^Loop.checkpoints .*{says}"):
    Loop(checkpoints=place)


def test_run_without_the_package_of_its_bucket_is_read_and_not_begun(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  run = _experiment("s3://bucket/run")
  says = r"Loop.checkpoints s3:.* s3fs, which is not installed; pip install 'xpo_jax"
  with pytest.raises(ValueError, match=says):
    loop.train(run, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_place_that_only_one_process_sees_is_refused(tmp_path, monkeypatch):
  checkpoint.check_place(str(tmp_path), new=True)
  assert not list(tmp_path.iterdir())
  # Process 0 has written its mark in another directory of this name.
  monkeypatch.setattr(distributed, "on_first", lambda function: ".mark")
  with pytest.raises(ValueError, match="is not the directory that process 0 sees"):
    checkpoint.check_place(str(tmp_path), new=True)
