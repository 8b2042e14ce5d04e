"""Trains tiny runs on one, two and four local processes, ends some, and compares.

    python experiments/bench/hosts.py

A run on records and a run on rollouts, each from the command line on four virtual
devices: whole on one process and on four; on two, of which one is killed (SIGKILL);
from there on four, of which one is told to stop (SIGTERM); from there to the end on
one. The metrics and the last state must be those of the run on one process to 1e-6, and
so must an evaluation by two processes be that by one.
Prints a JSON line for each, and exits with 1 where one is wrong.

Needs no accelerator; the file is also the recipe of both runs.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402

from tests import xla_flags  # noqa: E402
from tests.train import compare  # noqa: E402
from tests.train.tiny_runs import MODEL, ONLINE  # noqa: E402
from xpo_jax.config import experiment as experiments  # noqa: E402
from xpo_jax.config.data import Data, Evaluation  # noqa: E402
from xpo_jax.config.experiment import (  # noqa: E402
  Experiment,
  Loop,
  MeshShape,
  Scratch,
)
from xpo_jax.config.factories import ObjectiveConfig  # noqa: E402
from xpo_jax.config.optim import Optimizer  # noqa: E402
from xpo_jax.data import sealed_files, synthetic_reviews  # noqa: E402
from xpo_jax.evaluation import evaluate_run  # noqa: E402
from xpo_jax.train import metrics  # noqa: E402

DEVICES, TOLERANCE = 4, 1e-6
KILL_AT, STOP_AT = 5, 9  # lines of metrics after which a process is ended
LIMIT = 900.0  # seconds of a run


def write_pairs(path: Path, count: int = 40) -> None:
  """Writes pairs of synthetic reviews as JSON lines."""
  texts = synthetic_reviews.generate(2 * count, seed=0)
  with path.open("w", encoding="utf-8") as file:
    for (prompt, good), (_, other) in zip(texts[:count], texts[count:], strict=True):
      row = {"prompt": prompt, "chosen": good, "rejected": other}
      file.write(json.dumps(row) + "\n")


def experiment(kind: str, path: str) -> Experiment:
  """The run of a kind, "offline" on the pairs of a file, or "online"."""
  same: dict[str, Any] = {
    "start": Scratch(MODEL),
    # Adam divides by the root of the second moment: at the usual eps a gradient that is
    # almost 0 would turn rounding into a step of full length.
    "optimizer": Optimizer(learning_rate=1e-3, ema=0.9, eps=1e-2),
    "loop": Loop(log_every=1, checkpoint_every=2, eval_every=8),
    "mesh": MeshShape(fsdp=2),
    "evaluation": Evaluation(share=0.2),
  }
  if kind == "offline":
    data = Data(path, rows_per_step=8, row_length=192, epochs=60)
    return Experiment(ObjectiveConfig("dpo"), data, **same)
  return experiments.replace(ONLINE, iterations=16, microbatches=1, **same)


class Processes:
  """The processes of one run, of which each is told what it is.

  Args:
    words: of the command.
    count: of processes.
    directory: for what they print.
  """

  def __init__(self, words: Sequence[str], count: int, directory: Path):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": xla_flags.devices(DEVICES // count),
      "PYTHONPATH": str(REPOSITORY),
    }
    self.begun = time.monotonic()
    self.logs = [directory / f"log{index}" for index in range(count)]
    self.started = []
    for index, log in enumerate(self.logs):
      flags = ["--distributed", "--coordinator", address, "--processes", str(count)]
      flags += ["--process-index", str(index)]
      command = [sys.executable, "-m", "xpo_jax", *words, *(flags if count > 1 else ())]
      with log.open("w") as file:
        self.started.append(
          subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT
          )
        )

  def signal_at(self, run_dir: Path, lines: int, index: int, number: int) -> None:
    """Sends a signal to one process when the run has so many lines of metrics."""
    path = run_dir / metrics.FILE
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
      if self.started[0].poll() is not None or self.seconds > LIMIT:
        self.kill()
        raise ValueError(f"the run ended before {lines} steps: {self.said()}")
      time.sleep(0.05)
    self.started[index].send_signal(number)

  def wait(self) -> list[int]:
    """Waits for the end of all; returns their exit codes."""
    try:
      return [process.wait(LIMIT - self.seconds) for process in self.started]
    finally:
      self.kill()

  def kill(self) -> None:
    for process in self.started:
      process.kill()

  @property
  def seconds(self) -> float:
    return time.monotonic() - self.begun

  def said(self) -> str:
    """What they printed."""
    return "\n".join(log.read_text(errors="replace")[-3000:] for log in self.logs)


def difference(run_dir: Path, whole: Path) -> float:
  """The largest relative difference of any metric or array of the last state."""
  ours, theirs = compare.lines(run_dir), compare.lines(whole)
  if [list(line) for line in ours] != [list(line) for line in theirs]:
    return float("inf")
  pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in a]
  pairs += zip(compare.leaves(run_dir), compare.leaves(whole), strict=True)
  return max(
    float(np.max(np.abs(np.subtract(a, b, dtype=float)) / np.maximum(np.abs(b), 1)))
    for a, b in pairs
    if np.size(a)
  )


def numbers_differ(ours: Any, theirs: Any) -> float:
  """The largest relative difference of numbers in nested plain data."""
  if isinstance(ours, dict) and isinstance(theirs, dict) and list(ours) == list(theirs):
    return max(map(numbers_differ, ours.values(), theirs.values()), default=0.0)
  if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
    return max(map(numbers_differ, ours, theirs), default=0.0)
  if isinstance(ours, float) and isinstance(theirs, float):
    return abs(ours - theirs) / max(abs(theirs), 1)
  return 0.0 if ours == theirs else float("inf")


def drill(kind: str, directory: Path) -> bool:
  """Makes the runs of a kind, and prints a line for each; whether all are right."""
  write_pairs(directory / "pairs.jsonl")
  recipe = [str(Path(__file__).resolve()), f"kind={kind}"]
  train = ["train", *recipe, f"path={directory / 'pairs.jsonl'}", "--run-dir"]
  one, four, ended = (directory / f"{kind}_{name}" for name in ("one", "four", "ended"))
  right = []

  def show(
    what: str, run: Processes, codes: list[int], good: bool, **more: Any
  ) -> None:
    line = {"kind": kind, "what": what, "seconds": round(run.seconds, 1)}
    print(json.dumps(line | {"codes": codes, "right": good} | more), flush=True)
    if not good:
      print(run.said(), file=sys.stderr)
    right.append(good)

  def compared(what: str, run: Processes, run_dir: Path) -> None:
    codes = run.wait()
    most = difference(run_dir, one) if not any(codes) else float("inf")
    show(what, run, codes, most <= TOLERANCE, difference=most)

  run = Processes([*train, str(one)], 1, directory)
  codes = run.wait()
  show("one process", run, codes, codes == [0])
  run = Processes([*train, str(four)], 4, directory)
  compared("four processes", run, four)

  run = Processes([*train, str(ended)], 2, directory)
  run.signal_at(ended, KILL_AT, 1, signal.SIGKILL)
  killed = time.monotonic()
  codes = run.wait()
  after = round(time.monotonic() - killed, 1)
  named = "unhealthy" in run.logs[0].read_text(errors="replace")
  good = codes == [-signal.SIGABRT, -signal.SIGKILL] and named and after < 60
  show("one of two processes killed", run, codes, good, seconds_to_end=after)

  run = Processes(["resume", str(ended)], 4, directory)
  run.signal_at(ended, STOP_AT, 2, signal.SIGTERM)
  codes = run.wait()
  steps = sorted(int(p.name) for p in (ended / "checkpoints").iterdir())
  done = len(metrics.read(ended))
  good = codes == [75] * 4 and steps[-1] == done
  show("one of four processes stopped", run, codes, good, steps_done=done)

  run = Processes(["resume", str(ended)], 1, directory)
  compared("ended on one process", run, ended)

  measured = []
  for count, run_dir in ((1, one), (2, four)):
    words = ["evaluate", str(run_dir), "--prompts", "7", "--max-completion-tokens", "4"]
    run = Processes(words, count, directory)
    codes = run.wait()
    if not any(codes):
      measured.append(sealed_files.read_json(run_dir / evaluate_run.FILE))
  most = numbers_differ(*measured) if len(measured) == 2 else float("inf")
  show("evaluated by two", run, codes, most <= TOLERANCE, difference=most)
  return all(right)


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("--kinds", nargs="+", default=["offline", "online"])
  parser.add_argument("--directory", type=Path, help="kept; default a temporary one")
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as temporary:
    directory = args.directory or Path(temporary)
    directory.mkdir(exist_ok=True)
    return 0 if all([drill(kind, directory) for kind in args.kinds]) else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
