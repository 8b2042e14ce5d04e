"""Writes metrics: metrics.jsonl, TensorBoard, and optionally Weights & Biases.

`metrics.jsonl` has one line a step, in order: all but the keys under `time/` is equal
bit for bit when a run is repeated or resumed. A number that is not finite is written as
Python's json writes it (`NaN`, `Infinity`). The last field of a line is its checksum. A
line that is damaged, or that is missing between two others, is refused by every reader;
an incomplete last line is left out, and named in the report.
"""

import importlib.util
import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorboardX

from xpo_jax.data import sealed_files
from xpo_jax.sharding import distributed

FILE = "metrics.jsonl"
TIME = "time/"
_STOP = None


class Writer(NamedTuple):
  """Open files and services of a run; see `open_writer` and `close`."""

  lines: Any
  board: tensorboardX.SummaryWriter
  wandb: "queue.SimpleQueue | None"
  worker: threading.Thread | None


def open_writer(
  run_dir: Path, step: int = 0, wandb: Mapping[str, Any] | None = None
) -> Writer:
  """Opens the metrics of a run that has done `step` steps.

  Lines after that step, of a run killed after its last checkpoint, are removed, so that
  the file of a resumed run equals that of an uninterrupted one. Of several processes
  the first writes them.

  Args:
    run_dir: the run.
    step: steps done.
    wandb: arguments of `wandb.init`, or None for no Weights & Biases.

  Raises:
    ValueError: wandb is on and not installed. Lines up to the step are damaged or
      missing.
  """
  distributed.on_first(lambda: _continue_from(run_dir / FILE, step))
  if not distributed.is_first():  # written to nothing
    board = tensorboardX.SummaryWriter(write_to_disk=False)
    return Writer(tempfile.TemporaryFile("w"), board, None, None)
  worker = pipe = None
  if wandb is not None:
    check_wandb()
    pipe = queue.SimpleQueue()
    worker = threading.Thread(target=_forward, args=(pipe, dict(wandb)), daemon=True)
    worker.start()
  board = tensorboardX.SummaryWriter(
    str(run_dir / "tensorboard"), purge_step=step + 1, flush_secs=10
  )
  lines = (run_dir / FILE).open("a", encoding="utf-8")
  return Writer(lines, board, pipe, worker)


def _continue_from(path: Path, step: int) -> None:
  if path.exists():
    truncate(path, step)


def check_wandb() -> None:
  """Refuses Weights & Biases where it is not installed."""
  if importlib.util.find_spec("wandb") is None:
    raise ValueError(
      "Loop.wandb is on, but wandb is not installed; pip install 'xpo_jax[wandb]', "
      "or turn it off"
    )


def write(writer: Writer, line: Mapping[str, float]) -> None:
  """Writes one step's numbers; `line["step"]` counts from 1."""
  step = int(line["step"])
  writer.lines.write(sealed_files.sealed_line(line))
  for name, value in line.items():
    if name != "step":
      writer.board.add_scalar(name, value, step)
  if writer.wandb is not None:
    writer.wandb.put(dict(line))


def flush(writer: Writer) -> None:
  """Flushes the written lines to the file."""
  writer.lines.flush()


def synchronise(writer: Writer) -> None:
  """Makes the written lines durable."""
  writer.lines.flush()
  os.fsync(writer.lines.fileno())


def close(writer: Writer, patience: float = 10.0) -> None:
  """Closes the sinks; waits for Weights & Biases at most `patience` seconds."""
  writer.lines.close()
  writer.board.close()
  if writer.worker is not None:
    writer.wandb.put(_STOP)
    writer.worker.join(patience)


def read(run_dir: Path) -> list[dict[str, float]]:
  """Reads the lines of `metrics.jsonl`, without an incomplete last line.

  Raises:
    ValueError: a line is damaged, or lines between two others are missing.
  """
  return [line for _, line in _lines(Path(run_dir) / FILE)]


def final(run_dir: Path, step: int) -> dict[str, float]:
  """Reads the line of a run's last step.

  Raises:
    ValueError: as `read`, or the lines end at another step.
  """
  lines = read(run_dir)
  _refuse_end(Path(run_dir) / FILE, lines[-1]["step"] if lines else 0, step)
  return lines[-1]


def left_out(run_dir: Path) -> str:
  """Describes what `read` leaves out: "" where it is nothing."""
  path = Path(run_dir) / FILE
  lines, _, rest = path.read_bytes().rpartition(b"\n")
  steps = [line["step"] for line in read(run_dir)]
  notes = []
  if steps and steps[0] > 1:
    notes.append(f"{FILE} lacks the steps before {steps[0]:.0f}")
  if rest:
    number = lines.count(b"\n") + 1 + bool(lines)
    notes.append(
      f"{FILE}, line {number} is incomplete and left out: its writer was killed, or is "
      "at work"
    )
  return "; ".join(notes)


def truncate(path: Path, step: int) -> None:
  """Removes the lines after `step`, damaged or incomplete ones too.

  Raises:
    ValueError: a line before it is damaged or missing.
  """
  texts, last = [], 0
  if step:
    for text, line in _lines(path):
      texts.append(text + b"\n")
      last = line["step"]
      if last >= step:
        break
  _refuse_end(path, last, step)
  # A second kill must not lose lines.
  sealed_files.write_bytes(path, b"".join(texts))


def _refuse_end(path: Path, last: float, step: int) -> None:
  if last != step:
    raise ValueError(
      f"{path} ends at step {last:.0f}, and the run has done {step}: lines were lost; "
      "put it back from a copy, or move it away to go on without them"
    )


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, float]]]:
  """Yields texts and lines, the last only where it is complete."""
  *texts, rest = path.read_bytes().split(b"\n")
  before = None
  for number, text in enumerate(texts, 1):
    place = f"{path}, line {number}"
    line, _ = sealed_files.read_line(text, place)
    if not isinstance(line, dict) or not isinstance(line.get("step"), int | float):
      raise ValueError(f"{place} has no step: put the file back from a copy")
    if before not in (None, line["step"] - 1):
      raise ValueError(
        f"{place} is of step {line['step']}, the one before it of step {before}: lines "
        "were lost; put the file back from a copy"
      )
    before = line["step"]
    yield text, line
  # Not the beginning of a line, but a whole one whose end was changed.
  if rest and sealed_files.is_sealed_line(rest[:-1]):
    raise ValueError(
      f"{path}, line {len(texts) + 1} does not end with a line break: it was damaged; "
      "put the file back from a copy"
    )


def _forward(pipe: queue.SimpleQueue, init: dict[str, Any]) -> None:
  """Sends lines to Weights & Biases from its own thread: a login prompt, a network
  failure or an error of the service must neither block nor end the run."""
  try:
    import wandb

    run = wandb.init(**init)
    while (line := pipe.get()) is not _STOP:
      run.log({k: v for k, v in line.items() if k != "step"}, step=int(line["step"]))
    run.finish()
  except Exception as error:  # whatever the service raises; the run goes on
    print(f"wandb stopped: {error!r}; metrics.jsonl and TensorBoard go on", flush=True)
    while pipe.get() is not _STOP:
      pass
