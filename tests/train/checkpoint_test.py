"""A checkpoint is either exactly what was saved or it is passed over, with a reason."""

import dataclasses
import json
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.data import sealed_files
from xpo_jax.train import checkpoint, run_directory
from xpo_jax.train.state import RolloutState, TrainState


def _state(step: int) -> TrainState:
  w = jnp.arange(4096.0).reshape(64, 64) + step
  return TrainState(
    step=jnp.int32(step),
    params={"lm": {"w": w}},
    opt_state=({"mu": w / 3}, ()),
    method_state={"gap_mean": jnp.float32(0.1 * step)},
    ema=None,
    key=jax.random.fold_in(jax.random.key(7), step),
  )


def _bits(state: TrainState) -> list[bytes]:
  leaves = jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))
  return [np.asarray(x).tobytes() for x in leaves]


@pytest.fixture
def saved(tmp_path):
  """Checkpoints at steps 1, 2 and 3, of which two are kept."""
  manager = checkpoint.open_manager(tmp_path / "checkpoints", keep=2)
  for step in (1, 2, 3):
    checkpoint.save(manager, _state(step), {"note": step})
  manager.close()
  return tmp_path / "checkpoints"


def _restore(directory):
  manager = checkpoint.open_manager(directory, keep=2)
  found = checkpoint.restore(manager, _state(0))
  manager.close()
  return found


def test_restored_state_is_the_saved_one_bit_for_bit(saved):
  found = _restore(saved)
  assert _bits(found.state) == _bits(_state(3))
  assert found.meta == {"note": 3} and found.rejected == ()


def test_only_the_last_checkpoints_are_kept(saved):
  assert sorted(p.name for p in saved.iterdir() if p.is_dir()) == ["2", "3"]


def test_policies_are_those_of_every_complete_checkpoint(saved):
  def first_weights():
    found = checkpoint.policies(saved)
    return {step: float(params["lm"]["w"][0, 0]) for step, params in found}

  assert first_weights() == {2: 2.0, 3: 3.0}
  (saved / "2" / checkpoint.MANIFEST).unlink()
  assert first_weights() == {3: 3.0}
  _flip_a_bit(saved / "3")
  with pytest.raises(ValueError, match=r"checkpoints/3: .* differs from its checksum"):
    first_weights()


def test_step_killed_while_it_is_deleted_is_incomplete(tmp_path, monkeypatch):
  def killed(step):
    raise KeyboardInterrupt

  manager = checkpoint.open_manager(tmp_path / "checkpoints", keep=1)
  checkpoint.save(manager, _state(1), {})
  monkeypatch.setattr(manager, "delete", killed)
  with pytest.raises(KeyboardInterrupt):
    checkpoint.save(manager, _state(2), {})
  manager.close()
  assert [step for step, _ in checkpoint.policies(tmp_path / "checkpoints")] == [2]


def test_policy_of_a_checkpoint_is_the_average_where_one_is_kept(tmp_path):
  manager = checkpoint.open_manager(tmp_path / "checkpoints", keep=2)
  average = {"lm": {"w": jnp.full((64, 64), 7.0)}}
  held = _state(1).replace(ema=average)
  whole = RolloutState(jnp.int32(1), held, ref=None, sampler=(), beta=None)
  checkpoint.save(manager, whole, {})
  manager.close()
  ((step, params),) = checkpoint.policies(tmp_path / "checkpoints")
  assert step == 1 and (np.asarray(params["lm"]["w"]) == 7.0).all()


def test_directory_without_checkpoints_restores_nothing(tmp_path):
  assert _restore(tmp_path / "none") is None


def _flip_a_bit(step_dir):
  file = max(step_dir.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
  raw = bytearray(file.read_bytes())
  raw[len(raw) // 2] ^= 1
  file.write_bytes(raw)


def _delete_half(step_dir):
  files = sorted(p for p in step_dir.rglob("*") if p.is_file())
  for file in files[: len(files) // 2]:
    if file.name != checkpoint.MANIFEST:
      file.unlink()


def _lose_manifest(step_dir):
  (step_dir / checkpoint.MANIFEST).unlink()


def _cut_manifest(step_dir):
  file = step_dir / checkpoint.MANIFEST
  file.write_text(file.read_text()[:50])


@pytest.mark.parametrize(
  ("damage", "says"),
  [
    (_flip_a_bit, "differs from its checksum"),
    (_delete_half, "is missing"),
    (_lose_manifest, "the save was cut off"),
    (_cut_manifest, "not JSON"),
  ],
)
def test_damaged_checkpoint_falls_back_to_the_one_before(saved, damage, says):
  damage(saved / "3")
  found = _restore(saved)
  assert _bits(found.state) == _bits(_state(2))
  assert len(found.rejected) == 1 and says in found.rejected[0]


def test_step_lost_to_damage_can_be_saved_again(saved):
  _flip_a_bit(saved / "3")
  manager = checkpoint.open_manager(saved, keep=2)
  checkpoint.restore(manager, _state(0))
  checkpoint.save(manager, _state(3), {"note": "again"})
  manager.close()
  assert _restore(saved).meta == {"note": "again"}


def test_all_checkpoints_damaged_is_refused_and_nothing_deleted(saved):
  _flip_a_bit(saved / "2")
  _lose_manifest(saved / "3")
  before = sorted(saved.rglob("*"))
  with pytest.raises(
    ValueError, match=r"(?s)checkpoints is damaged.*step 3: MANIFEST"
  ) as e:
    _restore(saved)
  assert "step 2: " in str(e.value) and "another name" in str(e.value)
  assert sorted(saved.rglob("*")) == before


@pytest.mark.parametrize("keep", [1, 2])
def test_step_killed_while_it_is_sealed_costs_no_step_before_it(
  tmp_path, monkeypatch, keep
):
  def killed(directory):
    raise KeyboardInterrupt

  manager = checkpoint.open_manager(tmp_path, keep)
  checkpoint.save(manager, _state(1), {})
  checkpoint.save(manager, _state(2), {})
  monkeypatch.setattr(sealed_files, "seal", killed)
  with pytest.raises(KeyboardInterrupt):
    checkpoint.save(manager, _state(3), {})
  manager.close()
  found = _restore(tmp_path)
  assert _bits(found.state) == _bits(_state(2))
  assert found.rejected[0].startswith("step 3: ")


def test_first_save_cut_off_begins_again_and_says_so(tmp_path):
  directory, said = tmp_path / "checkpoints", []
  manager = checkpoint.open_manager(directory, keep=1)
  checkpoint.save(manager, _state(1), {})
  _lose_manifest(directory / "1")
  fresh = _state(0)
  assert run_directory.restore_state(manager, tmp_path, fresh, {}, said.append) is fresh
  assert "step 1: " in said[0] and "beginning again" in said[1]
  checkpoint.save(manager, _state(1), {"note": "again"})
  manager.close()
  assert _restore(directory).meta == {"note": "again"}


def test_manifest_covers_every_file(saved):
  sums = json.loads((saved / "3" / checkpoint.MANIFEST).read_text())
  files = {
    str(p.relative_to(saved / "3")) for p in (saved / "3").rglob("*") if p.is_file()
  }
  assert set(sums) == files - {checkpoint.MANIFEST}


def test_sharded_state_restores_onto_its_shardings(saved):
  mesh = jax.make_mesh((8,), ("x",), (jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  like = _state(0)
  like = like.replace(params=jax.device_put(like.params, split))
  manager = checkpoint.open_manager(saved, keep=2)
  found = checkpoint.restore(manager, like)
  w = found.state.params["lm"]["w"]
  assert w.sharding == split and w.addressable_shards[0].data.shape == (8, 64)
  np.testing.assert_array_equal(w, _state(3).params["lm"]["w"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_becomes_a_request_and_the_handler_is_put_back(number, capfd):
  before = signal.getsignal(number)
  with checkpoint.preemption() as stop:
    assert stop.signal == ""
    signal.raise_signal(number)
    assert stop.signal == number.name
  assert signal.getsignal(number) is before
  assert ("once more ends at once" in capfd.readouterr().err) == (number == 2)


def test_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not():
  before = signal.getsignal(signal.SIGINT)
  with checkpoint.preemption() as stop:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
      signal.raise_signal(number)
    assert stop.signal == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is before


def test_ignored_ctrl_c_stays_ignored():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with checkpoint.preemption() as stop:
      signal.raise_signal(signal.SIGINT)
      assert stop.signal == ""
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone():
  before = signal.getsignal(signal.SIGTERM)

  def body():
    with checkpoint.preemption() as stop:
      seen.append((signal.getsignal(signal.SIGTERM), stop.signal))

  seen = []
  thread = threading.Thread(target=body)
  thread.start()
  thread.join()
  assert seen == [(before, "")]


def test_checkpoint_of_an_older_version_lacks_a_field_that_is_none(tmp_path):
  """One without `prompts_taken`, which only dynamic sampling has."""
  now = RolloutState(jnp.int32(1), _state(4), None, (), jnp.float32(0.5))
  fields = {name: x for name, x in vars(now).items() if name != "prompts_taken"}
  older = dataclasses.make_dataclass("Older", fields)(**fields)
  jax.tree_util.register_dataclass(type(older), list(fields), [])
  manager = checkpoint.open_manager(tmp_path / "checkpoints", keep=1)
  checkpoint.save(manager, older, {})
  found = checkpoint.restore(manager, now).state
  assert found.prompts_taken is None and found.beta == 0.5
  assert _bits(found.train) == _bits(now.train)
  # Where it is read, its absence is no silence.
  with pytest.raises(ValueError, match="prompts_taken"):
    checkpoint.restore(manager, now.replace(prompts_taken=jnp.int32(0)))
  manager.close()


def test_checkpoints_without_room_are_refused(saved, monkeypatch):
  manager = checkpoint.open_manager(saved, keep=2)
  state = _state(3)
  each = 4 + 2 * 64 * 64 * 4 + 4  # step, parameters, moment, method state
  usage = shutil.disk_usage(saved)
  monkeypatch.setattr(
    checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=each)
  )
  checkpoint.check_room(manager, state, saves=3)  # two are there
  with pytest.raises(ValueError, match=rf"they need {2 * each:,} bytes .*Loop\.keep"):
    checkpoint.check_room(manager, state, saves=4)
  manager.close()


def test_checkpoint_is_read_without_its_devices(saved):
  manager = checkpoint.open_manager(saved, keep=2)
  state = checkpoint.read(manager, 3)
  manager.close()
  np.testing.assert_array_equal(state["params"]["lm"]["w"], _state(3).params["lm"]["w"])
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(state))


def test_signal_to_one_of_several_processes_waits_for_the_step_of_all(monkeypatch):
  agreed = iter([False, True])
  monkeypatch.setattr(checkpoint.jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    checkpoint.multihost_utils, "reached_preemption_sync_point", lambda _: next(agreed)
  )
  before = signal.getsignal(signal.SIGTERM)
  with checkpoint.preemption() as stop:
    assert signal.getsignal(signal.SIGTERM) is before  # JAX's own
    assert not stop.reached(1) and stop.signal == ""
    assert stop.reached(2) and stop.signal == "SIGTERM"


def test_state_saved_in_the_background_is_that_before_it_was_donated(tmp_path):
  update = jax.jit(
    lambda w, step: (w + 1, step + 1), donate_argnums=(0, 1)
  )  # as the training step does
  manager = checkpoint.open_manager(tmp_path, keep=2, background=True)
  state = _state(1)
  for _ in range(4):
    checkpoint.save(manager, state, {})
    w, step = update(state.params["lm"]["w"], state.step)
    state = state.replace(params={"lm": {"w": w}}, step=step)
  manager.close()
  kept = dict(checkpoint.policies(tmp_path))
  assert list(kept) == [3, 4]
  for step, params in kept.items():
    np.testing.assert_array_equal(params["lm"]["w"], _state(step).params["lm"]["w"])
  assert _restore(tmp_path).rejected == ()


def test_save_in_the_background_that_failed_is_told_at_the_next(tmp_path, monkeypatch):
  def full(directory):
    raise OSError("No space left on device")

  manager = checkpoint.open_manager(tmp_path, keep=2, background=True)
  monkeypatch.setattr(sealed_files, "seal", full)
  checkpoint.save(manager, _state(1), {})
  with pytest.raises(OSError, match="No space left"):
    checkpoint.save(manager, _state(2), {})
  manager.close()
