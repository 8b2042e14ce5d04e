"""Writes metrics: metrics.jsonl, TensorBoard, and optionally Weights & Biases.

`metrics.jsonl` has one line a step, in order: all but the keys under `time/` is equal
bit for bit when a run is repeated or resumed. A number that is not finite is written as
Python's json writes it (`NaN`, `Infinity`).
"""

import importlib.util
import json
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorboardX

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
  the file of a resumed run equals that of an uninterrupted one.

  Args:
    run_dir: the run.
    step: steps done.
    wandb: arguments of `wandb.init`, or None for no Weights & Biases.

  Raises:
    ValueError: wandb is on and not installed.
  """
  path = run_dir / FILE
  if path.exists():
    truncate(path, step)
  worker = pipe = None
  if wandb is not None:
    check_wandb()
    pipe = queue.SimpleQueue()
    worker = threading.Thread(target=_forward, args=(pipe, dict(wandb)), daemon=True)
    worker.start()
  board = tensorboardX.SummaryWriter(
    str(run_dir / "tensorboard"), purge_step=step + 1, flush_secs=10
  )
  return Writer(path.open("a", encoding="utf-8"), board, pipe, worker)


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
  writer.lines.write(json.dumps(line) + "\n")
  for name, value in line.items():
    if name != "step":
      writer.board.add_scalar(name, value, step)
  if writer.wandb is not None:
    writer.wandb.put(dict(line))


def flush(writer: Writer) -> None:
  """Flushes the written lines to the file."""
  writer.lines.flush()


def close(writer: Writer, patience: float = 10.0) -> None:
  """Closes the sinks; waits for Weights & Biases at most `patience` seconds."""
  writer.lines.close()
  writer.board.close()
  if writer.worker is not None:
    writer.wandb.put(_STOP)
    writer.worker.join(patience)


def read(run_dir: Path) -> list[dict[str, float]]:
  """Reads the lines of `metrics.jsonl` without an incomplete last line."""
  return list(_lines(Path(run_dir) / FILE))


def truncate(path: Path, step: int) -> None:
  """Removes the lines after `step`, and an incomplete last line."""
  lines = [json.dumps(line) + "\n" for line in _lines(path) if line["step"] <= step]
  # Written to a temporary file, then renamed: a second kill must not lose lines.
  temporary = path.with_suffix(".tmp")
  temporary.write_text("".join(lines), encoding="utf-8")
  temporary.replace(path)


def _lines(path: Path):
  for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
    if not text.endswith("\n"):
      return  # the process was killed while writing this line
    yield json.loads(text)


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
