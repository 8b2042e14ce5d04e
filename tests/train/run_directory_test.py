"""A run directory: made whole, refused by name, compared with what it holds."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tests.quiet import quiet
from tests.train.tiny_runs import NASH, PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import sealed_files
from xpo_jax.train import run_directory


def test_directory_holds_the_configuration_from_the_start(tmp_path, monkeypatch):
  run_dir = tmp_path / "a" / "run"

  def killed(directory, experiment):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(yaml_file, "write", killed)
    with pytest.raises(KeyboardInterrupt), run_directory.create(run_dir, PLAIN, quiet):
      pass
  assert not run_dir.exists()  # so that the same name can be used
  with run_directory.create(run_dir, PLAIN, quiet):
    assert run_directory.read_config(run_dir) == PLAIN
  assert [path.name for path in run_dir.parent.iterdir()] == ["run"]
  with pytest.raises(ValueError, match=r"exists; name another one.*xpo resume"):
    run_directory.refuse_existing(run_dir)


@pytest.mark.parametrize(
  ("made", "stays"),
  [
    ((), False),
    (("references", "tokenizer"), False),
    (("stages",), False),  # whose first stage was refused
    (("stages", "stages/sft"), True),
    (("checkpoints",), True),
    (("rollouts",), True),
  ],
)
def test_refused_run_leaves_no_directory_unless_something_was_computed(
  tmp_path, made, stays
):
  run_dir = tmp_path / "run"
  with pytest.raises(ValueError, match="refused"):
    with run_directory.create(run_dir, PLAIN, quiet):
      for name in made:
        (run_dir / name).mkdir()
      raise ValueError("refused")
  assert run_dir.exists() == stays


def test_run_killed_by_anything_else_stays(tmp_path):
  run_dir = tmp_path / "run"
  with pytest.raises(OSError), run_directory.create(run_dir, PLAIN, quiet):
    raise OSError("the disk is full")
  assert run_directory.read_config(run_dir) == PLAIN


def _lock_of(run_dir, **changes):
  """Writes a lock as this process would, with changes."""
  run_dir.mkdir(exist_ok=True)
  with run_directory.lock(run_dir, quiet):
    text = (run_dir / run_directory.LOCK).read_text()
  lock = json.dumps(json.loads(text) | changes)
  (run_dir / run_directory.LOCK).write_text(lock)
  return lock


def test_directory_is_locked_from_the_start_and_free_at_the_end(tmp_path):
  path = tmp_path / "run" / run_directory.LOCK
  with run_directory.create(tmp_path / "run", PLAIN, quiet):
    lock = json.loads(path.read_text())
    assert (lock["host"], lock["pid"]) == (socket.gethostname(), os.getpid())
  assert not path.exists()
  with run_directory.lock(tmp_path / "run", quiet):
    assert path.exists()
  assert not path.exists()
  with pytest.raises(OSError, match="full"), run_directory.lock(tmp_path, quiet):
    raise OSError("the disk is full")
  assert not (tmp_path / run_directory.LOCK).exists()


def test_lock_is_in_the_directory_before_anyone_can_find_it(tmp_path, monkeypatch):
  seen = []

  def write(directory, experiment):
    seen.append((directory.name, [path.name for path in directory.iterdir()]))

  monkeypatch.setattr(yaml_file, "write", write)
  with run_directory.create(tmp_path / "run", PLAIN, quiet):
    pass
  assert seen == [("run.tmp", [run_directory.LOCK])]


def test_second_writer_is_refused_by_the_name_of_the_first(tmp_path):
  run_dir, again = tmp_path / "run", "is being written by process"
  words = rf"{again} {os.getpid()} on {re.escape(socket.gethostname())} since 2\d{{3}}-"
  with run_directory.create(run_dir, PLAIN, quiet):
    with pytest.raises(ValueError, match=words) as refused:
      run_directory.refuse_existing(run_dir)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=words), run_directory.lock(run_dir, quiet):
      pass
    assert (run_dir / run_directory.LOCK).exists()  # the first one's, still
  with run_directory.lock(run_dir, quiet):
    pass


def test_run_that_another_process_makes_meanwhile_is_left_alone(tmp_path, monkeypatch):
  write = yaml_file.write

  def slow(directory, experiment):
    write(directory, experiment)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "theirs").touch()

  monkeypatch.setattr(yaml_file, "write", slow)
  with pytest.raises(ValueError, match="exists; name another one"):
    with run_directory.create(tmp_path / "run", PLAIN, quiet):
      pass
  assert [path.name for path in tmp_path.rglob("*")] == ["run", "theirs"]


@pytest.mark.parametrize("how", ["gone", "another start", "zombie", "cut"])
def test_stale_lock_is_taken_over_with_a_word(tmp_path, how):
  child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
  changes = {"pid": child.pid, "started": run_directory._started(child.pid)}
  lock = _lock_of(tmp_path / "run", **changes)
  with pytest.raises(ValueError, match=f"process {child.pid} on"):
    run_directory.refuse_existing(tmp_path / "run")
  child.stdin.close()
  if how == "zombie":  # ended, but not waited for
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
  else:
    child.wait()
  if how == "another start":
    (tmp_path / "run" / run_directory.LOCK).unlink()
    lock = _lock_of(tmp_path / "run", started="before")
  if how == "cut":
    (tmp_path / "run" / run_directory.LOCK).write_text(lock[:9])
  said = []
  with run_directory.lock(tmp_path / "run", said.append):
    own = json.loads((tmp_path / "run" / run_directory.LOCK).read_text())
    assert own["pid"] == os.getpid() and own["started"] != "before"
  assert len(said) == 1 and said[0].startswith("lock taken over")
  assert how == "cut" or f"process {json.loads(lock)['pid']} on" in said[0]
  child.wait()


def test_lock_that_is_released_while_another_waits_for_it_is_written_anew(
  tmp_path, monkeypatch
):
  _lock_of(tmp_path, started="before")
  path, waits = tmp_path / run_directory.LOCK, []

  def released(file, how):
    waits.append(how)
    if len(waits) == 1:
      path.unlink()

  monkeypatch.setattr(run_directory.fcntl, "flock", released)
  with run_directory.lock(tmp_path, quiet):
    assert json.loads(path.read_text())["started"] != "before"


def test_lock_of_another_host_is_refused_with_the_mend(tmp_path):
  _lock_of(tmp_path / "run", host="elsewhere", pid=1)
  path = tmp_path / "run" / run_directory.LOCK
  with pytest.raises(ValueError, match=rf"on elsewhere .* is gone, delete {path}$"):
    with run_directory.lock(tmp_path / "run", quiet):
      pass
  path.unlink()
  with run_directory.lock(tmp_path / "run", quiet):
    pass


def test_of_many_that_take_over_a_stale_lock_one_does(tmp_path):
  _lock_of(tmp_path / "run", started="before")
  held, refused = [], []
  ready, done = threading.Barrier(8), threading.Barrier(8)

  def take():
    ready.wait()
    try:
      with run_directory.lock(tmp_path / "run", quiet):
        held.append(1)
        done.wait()
    except ValueError as error:
      refused.append(str(error))
      done.wait()

  threads = [threading.Thread(target=take) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == 1 and len(refused) == 7
  assert not (tmp_path / "run" / run_directory.LOCK).exists()


def test_study_is_locked_beside_its_directory_which_it_may_clear(tmp_path):
  run_dir = tmp_path / "new" / "study"
  path = tmp_path / "new" / f"study.{run_directory.LOCK}"
  with run_directory.lock_study(run_dir, quiet):
    assert not run_dir.exists() and path.exists()
    words = f"^{run_dir} is being written by process {os.getpid()} on .*; wait for it"
    with pytest.raises(ValueError, match=words):
      with run_directory.lock_study(run_dir, quiet):
        pass
    with run_directory.lock_study(tmp_path / "new" / "other", quiet):
      pass
  assert not (tmp_path / "new").exists()  # nothing was made in it


def test_lock_that_another_process_took_is_not_removed(tmp_path):
  with run_directory.lock(tmp_path, quiet):
    _lock_text = json.dumps({"host": "b", "pid": 2, "started": "", "since": "now"})
    (tmp_path / run_directory.LOCK).write_text(_lock_text)
  assert (tmp_path / run_directory.LOCK).read_text() == _lock_text


def test_another_experiment_is_refused_with_the_difference(tmp_path):
  with run_directory.create(tmp_path / "run", PLAIN, quiet):
    pass
  other = experiments.replace(PLAIN, seed=1)
  with pytest.raises(ValueError, match=r"configuration changed\n  seed: 0 -> 1"):
    run_directory.read_config(tmp_path / "run", other)


@pytest.mark.parametrize("name", ["bradley_terry", "kwise", "token_reward"])
def test_reward_model_of_another_reading_is_not_resumed(tmp_path, name):
  objective = ObjectiveConfig(name)
  yaml_file.write(tmp_path, dataclasses.replace(PLAIN, objective=objective))
  run_directory.read_config(tmp_path)
  path = tmp_path / yaml_file.FILE
  lines = path.read_text().splitlines()
  kept = [x for x in lines if not x.startswith(("reward_head_at", "#"))]
  assert len(kept) < len(lines)
  path.write_text("\n".join(kept) + "\n")
  with pytest.raises(ValueError, match=f"reward_head_at is None.*{name} was trained"):
    run_directory.read_config(tmp_path)


def test_runs_without_a_reward_head_do_not_name_its_reading(tmp_path):
  yaml_file.write(tmp_path, PLAIN)
  assert "reward_head_at" not in yaml_file.content(tmp_path)
  run_directory.read_config(tmp_path)


def test_data_that_changed_since_the_run_began_are_refused(tmp_path):
  counts = {"rows": 3, "splits": {"train": (1, 2)}}
  run_directory.write_counts(tmp_path, counts)
  run_directory.write_counts(tmp_path, counts)
  with pytest.raises(ValueError, match=r"its data changed\n  rows: 3 -> 2"):
    run_directory.write_counts(tmp_path, counts | {"rows": 2})


@pytest.mark.parametrize(
  "name", [run_directory.JUDGES_DIGEST, run_directory.START_DIGEST]
)
def test_digest_that_an_older_run_lacks_passes(tmp_path, name):
  run_directory.write_counts(tmp_path, {"rows": 3})
  run_directory.write_counts(tmp_path, {"rows": 3, name: "a"})
  assert sealed_files.read_json(tmp_path / run_directory.COUNTS) == {"rows": 3}
  (tmp_path / run_directory.COUNTS).unlink()
  run_directory.write_counts(tmp_path, {"rows": 3, name: "a"})
  with pytest.raises(ValueError, match=rf"{name}: a -> b"):
    run_directory.write_counts(tmp_path, {"rows": 3, name: "b"})


def test_count_that_an_older_run_lacks_passes_at_any_depth(tmp_path):
  old = {"rows": 3, "held_out": {"rows": 2}}
  run_directory.write_counts(tmp_path, old)
  lengths = {"lengths": {"prompt": {"max": 4}}}
  new = {"rows": 3, "held_out": {"rows": 2} | lengths} | lengths
  run_directory.write_counts(tmp_path, new)
  new["held_out"] |= {"kept": 1}
  with pytest.raises(ValueError, match=r"held_out\.kept: \(absent\) -> 1"):
    run_directory.write_counts(tmp_path, new)


@struct.dataclass
class _Batch:
  tokens: jnp.ndarray


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_number_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path, name):
  sound = {"loss": 1.0, "grad_norm": 2.0, "rollout/reward": float("nan")}
  made = []

  def batch():
    made.append(1)
    return _Batch(jnp.arange(3))

  run_directory.refuse_non_finite(tmp_path, "step 1", sound, batch)
  run_directory.refuse_non_finite(tmp_path, "step 1", {"rollout/kl": 0.0}, batch)
  assert not made
  numbers = sound | {name: float("inf")}
  match = rf"step 2: .*{name} inf|step 2: {name} is inf"
  with pytest.raises(run_directory.NonFiniteLoss, match=match) as refused:
    run_directory.refuse_non_finite(tmp_path, "step 2", numbers, batch)
  assert "learning_rate" in str(refused.value)
  saved = np.load(tmp_path / run_directory.NONFINITE / "batch.npz")
  np.testing.assert_array_equal(saved["tokens"], [0, 1, 2])
  metrics = json.loads(
    (tmp_path / run_directory.NONFINITE / "metrics.json").read_text()
  )
  assert metrics[name] == float("inf")


def test_what_happens_every_so_often_is_due_then():
  assert [n for n in range(1, 9) if run_directory.due(3, n)] == [3, 6]
  assert not any(run_directory.due(None, n) for n in range(9))


def test_command_to_go_on_names_the_modules_that_need_trust(tmp_path):
  command = run_directory.resume_command(tmp_path, PLAIN)
  assert command == f"xpo resume {tmp_path}"
  command = run_directory.resume_command(tmp_path, NASH)  # by a judge of the tests
  assert command == f"xpo resume {tmp_path} --trust tests.train.tiny_runs"


def test_wandb_gets_the_configuration(tmp_path):
  meta = {"experiment": yaml_file.to_dict(dataclasses.replace(PLAIN, seed=3))}
  assert run_directory.wandb_arguments(None, tmp_path, meta) is None
  arguments = run_directory.wandb_arguments("project", tmp_path, meta)
  assert arguments["project"] == "project" and arguments["config"]["seed"] == 3


def test_directory_that_a_process_cannot_write_is_refused(tmp_path, monkeypatch):
  def read_only(place):
    raise PermissionError(f"Permission denied: {place}")

  run_directory._check_shared(tmp_path / "none")  # of one process
  monkeypatch.setattr(run_directory.jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match=r"no config.yaml here, .* a shared file system"):
    run_directory._check_shared(tmp_path)
  (tmp_path / "config.yaml").touch()
  run_directory._check_shared(tmp_path)
  monkeypatch.setattr(run_directory.buckets, "write_mark", read_only)
  says = r"cannot be written here \(PermissionError: Permission denied"
  with pytest.raises(ValueError, match=says):
    run_directory._check_shared(tmp_path)
