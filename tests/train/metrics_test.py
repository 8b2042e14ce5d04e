"""metrics.jsonl is the record; the other sinks must not endanger it."""

import json
import sys
import time
import types

import pytest
from tensorboardX.proto import event_pb2

from xpo_jax.train import metrics


def _line(step: int, **more) -> dict:
  return {"step": step, "loss": 1 / step, "time/seconds": 0.5} | more


def _write(run_dir, steps, **kwargs):
  writer = metrics.open_writer(run_dir, **kwargs)
  for step in steps:
    metrics.write(writer, _line(step))
  metrics.close(writer)


def test_lines_come_back_bit_for_bit(tmp_path):
  value = 0.1 + 0.2
  writer = metrics.open_writer(tmp_path)
  metrics.write(writer, _line(1, loss=value))
  metrics.close(writer)
  assert metrics.read(tmp_path)[0]["loss"] == value


def test_reopening_drops_lines_after_the_checkpoint_and_a_torn_one(tmp_path):
  _write(tmp_path, range(1, 6))
  with (tmp_path / metrics.FILE).open("a") as file:
    file.write('{"step": 6, "lo')
  _write(tmp_path, range(4, 7), step=3)
  assert metrics.read(tmp_path) == [_line(step) for step in range(1, 7)]


def test_tensorboard_gets_every_number(tmp_path):
  _write(tmp_path, [1, 2])
  (file,) = (tmp_path / "tensorboard").iterdir()
  raw, seen, at = file.read_bytes(), {}, 0
  while at < len(raw):  # length (8 bytes), its checksum (4), event, its checksum (4)
    size = int.from_bytes(raw[at : at + 8], "little")
    event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + size])
    seen |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
    at += size + 16
  assert seen[2, "loss"] == 0.5 and seen[1, "time/seconds"] == 0.5


def test_wandb_that_is_not_installed_is_refused(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'xpo_jax\[wandb\]'"):
    metrics.open_writer(tmp_path, wandb={"project": "p"})


@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_wandb_neither_blocks_nor_ends_a_run(tmp_path, monkeypatch, fault, capsys):
  def init(**kwargs):
    if fault == "raises":
      raise ConnectionError("no network")
    time.sleep(60)

  fake = types.SimpleNamespace(init=init, __spec__=None)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: fake)
  began = time.monotonic()
  writer = metrics.open_writer(tmp_path, wandb={"project": "p"})
  metrics.write(writer, _line(1))
  metrics.close(writer, patience=0.2)
  assert time.monotonic() - began < 10
  assert metrics.read(tmp_path) == [_line(1)]
  if fault == "raises":
    assert "wandb stopped" in capsys.readouterr().out


def test_wandb_gets_the_lines(tmp_path, monkeypatch):
  got = []
  run = types.SimpleNamespace(
    log=lambda line, step: got.append((step, line["loss"])), finish=lambda: None
  )
  fake = types.SimpleNamespace(init=lambda **kwargs: run, __spec__=None)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: fake)
  _write(tmp_path, [1, 2], wandb={"project": "p"})
  assert got == [(1, 1.0), (2, 0.5)]


def test_number_that_is_not_finite_can_be_read_back(tmp_path):
  writer = metrics.open_writer(tmp_path)
  metrics.write(writer, _line(1, loss=float("nan")))
  metrics.close(writer)
  text = (tmp_path / metrics.FILE).read_text()
  assert json.loads(text)["loss"] != json.loads(text)["loss"]


def test_every_changed_byte_is_refused_with_its_line(tmp_path):
  _write(tmp_path, [1, 2, 3])
  path = tmp_path / metrics.FILE
  whole = path.read_bytes()
  for at in range(len(whole)):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line [123]"):
      metrics.read(tmp_path)


@pytest.mark.parametrize("missing", [2, 3])
def test_missing_line_is_refused(tmp_path, missing):
  _write(tmp_path, [1, 2, 3])
  path = tmp_path / metrics.FILE
  lines = path.read_text().splitlines(keepends=True)
  del lines[missing - 1]
  path.write_text("".join(lines))
  with pytest.raises(ValueError, match="lines were lost"):
    metrics.final(tmp_path, 3)
  with pytest.raises(ValueError, match="lines were lost"):
    metrics.open_writer(tmp_path, 3)


def test_damage_after_the_checkpoint_does_not_stop_a_run(tmp_path):
  _write(tmp_path, [1, 2, 3])
  path = tmp_path / metrics.FILE
  path.write_text(path.read_text().replace('"step": 3', '"step": 4'))
  _write(tmp_path, [3], step=2)
  assert metrics.read(tmp_path) == [_line(step) for step in (1, 2, 3)]


def test_what_is_left_out_is_named(tmp_path):
  _write(tmp_path, [1, 2])
  assert metrics.left_out(tmp_path) == ""
  with (tmp_path / metrics.FILE).open("a") as file:
    file.write('{"step": 3, "lo')
  assert "line 3 is incomplete" in metrics.left_out(tmp_path)
  (tmp_path / metrics.FILE).unlink()  # by its user, to go on without it
  _write(tmp_path, [3], step=2)
  assert metrics.left_out(tmp_path) == "metrics.jsonl lacks the steps before 3"


@pytest.mark.parametrize("line", ["[1]", '{"stfp": 1}', '{"step": "1"}'])
def test_line_without_a_step_is_refused(tmp_path, line):
  (tmp_path / metrics.FILE).write_text(line + "\n")
  with pytest.raises(ValueError, match="line 1 has no step"):
    metrics.read(tmp_path)
