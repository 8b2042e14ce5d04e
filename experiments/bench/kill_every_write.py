"""Kills tiny runs between any two writes, lets them go on, and compares the results.

    python experiments/bench/kill_every_write.py

A run on records (a stage, adapters, cached references, made records, held-out data) and
a run on rollouts are trained, evaluated, reported and exported once. At every operation
that changes a directory (a file opened for writing, a rename, a removal, a new
directory) the files are copied as they are then: what a kill at that moment leaves,
nothing that a process still holds in its memory included. A second copy has the file
that was written last cut in half. From each copy the same command is given again: it
must end with the metrics, tensors and files of the undisturbed one. With `--exits
N`, the same is done for N of these moments in processes that end by `os._exit` there.

Needs no accelerator; about ten minutes on two cores.
"""

import argparse
import collections
import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

from tests.train import compare  # noqa: E402
from tests.train.tiny_runs import ADAPTED, ONLINE  # noqa: E402
from xpo_jax.config import experiment as experiments  # noqa: E402
from xpo_jax.config import yaml_file  # noqa: E402
from xpo_jax.config.data import Evaluation  # noqa: E402
from xpo_jax.config.experiment import Experiment, Loop, Stage  # noqa: E402
from xpo_jax.config.factories import Configured, ObjectiveConfig  # noqa: E402
from xpo_jax.data import synthetic_reviews  # noqa: E402
from xpo_jax.data.records import Pair, Record  # noqa: E402
from xpo_jax.evaluation import evaluate_run  # noqa: E402
from xpo_jax.report import run_page  # noqa: E402
from xpo_jax.train import loop, run_directory  # noqa: E402

RUN, EXPORT = "run", "exported"
_LIVE = "live"  # every run goes on under the name of the first: some files hold it
LIMIT = 4  # tokens of a completion in evaluation


def pairs(count: int) -> list[Record]:
  """Pairs of synthetic reviews; records that a function makes are written to a run."""
  texts = synthetic_reviews.generate(2 * count, seed=0)
  return [
    Pair(f"pair {i}", prompt, good, texts[i + count][1])
    for i, (prompt, good) in enumerate(texts[:count])
  ]


_RECORDS = experiments.replace(
  ADAPTED,
  path=Configured(pairs, count=16),
  epochs=2,
  steps=2,
  loop=Loop(log_every=1, checkpoint_every=1, keep=1),
  evaluation=Evaluation(share=0.25),
)
OFFLINE = experiments.replace(
  _RECORDS,
  start=Stage(
    experiments.replace(
      _RECORDS, objective=ObjectiveConfig("sft"), adapter=None, steps=1
    )
  ),
)
ROLLOUTS = experiments.replace(
  ONLINE,
  iterations=2,
  loop=Loop(log_every=1, eval_every=1),
  evaluation=Evaluation(share=0.2),
)
RUNS = {"offline": OFFLINE, "online": ROLLOUTS}


def quiet(text: str) -> None:
  """Takes a line and says nothing."""
  del text


def train(root: Path, experiment: Experiment) -> None:
  """Trains a run, or goes on with it where its directory has been created."""
  if (root / RUN / yaml_file.FILE).exists():
    loop.resume(root / RUN, say=quiet)
  else:
    loop.train(experiment, root / RUN, say=quiet)


def evaluate(root: Path, experiment: Experiment) -> None:
  """Evaluates the run."""
  del experiment
  evaluate_run.evaluate_run(
    root / RUN, prompts=4, completions=2, max_completion_tokens=LIMIT
  )


def report(root: Path, experiment: Experiment) -> None:
  """Writes the run's page."""
  del experiment
  run_page.write(root / RUN)


def export(root: Path, experiment: Experiment) -> None:
  """Exports the run's policy, unless that was done."""
  del experiment
  if not (root / EXPORT).exists():
    evaluate_run.export(root / RUN, root / EXPORT)


COMMANDS: dict[str, Callable[[Path, Experiment], None]] = {
  "train": train,
  "evaluate": evaluate,
  "report": report,
  "export": export,
}


class Moment(NamedTuple):
  """Files as a kill leaves them.

  Attributes:
    command: that was killed.
    number: of the operation in the command, from 0.
    operation: what would have come next.
    cut: whether the file that was written last is cut in half.
    root: directory of the copy.
  """

  command: str
  number: int
  operation: str
  cut: bool
  root: Path


class Whole(NamedTuple):
  """What undisturbed commands leave.

  Attributes:
    root: its directory.
    files: names of the files that there are after each command.
  """

  root: Path
  files: dict[str, list[Path]]


class Watch:
  """Calls a function before each operation that changes files below a directory.

  Args:
    root: the directory.
    before: takes the operation's description, and the file that was opened for writing
      last, or None.
  """

  def __init__(self, root: Path, before: Callable[[str, Path | None], None]):
    self.root, self.before = str(root), before
    self.on = False
    self._lock, self._busy = threading.RLock(), threading.local()
    self._opened: Path | None = None
    sys.addaudithook(self._hear)

  @contextlib.contextmanager
  def watching(self) -> Iterator[None]:
    """Calls the function while a block runs."""
    self.on, self._opened = True, None
    try:
      yield
      self._see("end", None)
    finally:
      self.on = False

  def _hear(self, event: str, arguments: Any) -> None:
    if not self.on or vars(self._busy).get("busy"):
      return
    if event == "open":
      path, _, flags = arguments
      writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
      # A directory: a file without a name is made in it, which a kill leaves nowhere.
      if writes and self._is_below(path) and not os.path.isdir(path):
        self._see(f"open {self._name(path)}", Path(os.fsdecode(path)))
    elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
      # A removal of a tree names files relative to a directory's handle.
      if self._is_below(arguments[0]) or not os.path.isabs(os.fsdecode(arguments[0])):
        self._see(f"{event.removeprefix('os.')} {self._name(arguments[0])}", None)

  def _see(self, operation: str, opened: Path | None) -> None:
    with self._lock:
      self._busy.busy = True
      try:
        self.before(operation, self._opened)
      finally:
        self._busy.busy = False
      self._opened = opened

  def _is_below(self, path: Any) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(
      self.root + os.sep
    )

  def _name(self, path: Any) -> str:
    return os.fsdecode(path).removeprefix(self.root + os.sep)


def moments(
  experiment: Experiment, directory: Path, commands: Sequence[str] = tuple(COMMANDS)
) -> tuple[Whole, list[Moment]]:
  """Runs commands undisturbed, with a copy of the files at every moment.

  Args:
    experiment: the run.
    directory: for the copies and the undisturbed run.
    commands: of `COMMANDS`, in order.

  Returns:
    The undisturbed run, and the moments at which files differ.
  """
  root, seen, found = directory / _LIVE, set(), []
  root.mkdir(parents=True)
  command, count = "", 0

  def keep(operation: str, source: Path, cut: Path | None) -> None:
    target = directory / f"{len(found):04d}"
    _copy(source, target)
    if cut is not None:
      file = target / cut.relative_to(root)
      if not file.exists() or not file.stat().st_size:
        shutil.rmtree(target)
        return
      os.truncate(file, file.stat().st_size // 2)
    state = command, _content(target)
    if state in seen:
      shutil.rmtree(target)
      return
    seen.add(state)
    found.append(Moment(command, count, operation, cut is not None, target))

  def before(operation: str, opened: Path | None) -> None:
    nonlocal count
    keep(operation, root, None)
    if opened is not None:
      keep(operation, root, opened)
    count += 1

  watch, files = Watch(root, before), {}
  for command in commands:
    count = 0
    with watch.watching():
      COMMANDS[command](root, experiment)
    files[command] = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
  return Whole(root.rename(directory / "whole"), files), found


def _copy(source: Path, target: Path) -> None:
  """Copies a directory; again where a thread renamed a file of it meanwhile."""
  for _ in range(100):
    try:
      shutil.copytree(source, target)
      return
    except OSError:  # shutil.Error is one
      shutil.rmtree(target, ignore_errors=True)
  raise OSError(f"{source} changes too fast to be copied")


def _content(directory: Path) -> str:
  """Digest of the names and bytes below a directory, without times of events."""
  sha = hashlib.sha256()
  for path in sorted(directory.rglob("*")):
    sha.update(f"{path.relative_to(directory)}\n".encode())
    if path.is_file() and "tensorboard" not in path.parts:
      sha.update(hashlib.sha256(path.read_bytes()).digest())
  return sha.hexdigest()


def go_on(moment: Moment, experiment: Experiment, whole: Whole) -> str | None:
  """Gives the killed command again.

  Returns:
    What is wrong; None where all is as in the undisturbed run.
  """
  root = moment.root.rename(whole.root.with_name(_LIVE))
  for path in root.rglob(run_directory.LOCK):  # the process was killed
    path.write_text(path.read_text("utf-8").replace('"started": "', '"started": "x'))
  try:
    COMMANDS[moment.command](root, experiment)
    return ", ".join(differences(root, whole, moment.command)) or None
  except Exception as error:  # whatever keeps the run from going on is the finding
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name})"
  finally:
    shutil.rmtree(root)


# Of these only their being there is compared: they hold times or a commit,
# or are compared by `compare.differences`.
_VARY = ("config.yaml", "summary.json", "metrics.jsonl", "report.html", "report.md")
_UNCOMPARED = ("tensorboard", "checkpoints")


def differences(root: Path, whole: Whole, command: str) -> list[str]:
  """What a run has that the undisturbed one has not after a command."""
  wrong = compare.differences(root / RUN, whole.root / RUN)
  for name in whole.files[command]:
    if set(_UNCOMPARED) & set(name.parts):
      continue
    if not (root / name).exists():
      wrong.append(f"{name} is missing")
    elif name.name not in _VARY:
      if (root / name).read_bytes() != (whole.root / name).read_bytes():
        wrong.append(f"{name} differs")
  return wrong


def exits(name: str, chosen: Sequence[Moment], directory: Path, whole: Whole) -> int:
  """Ends processes by `os._exit` at moments, goes on, and counts what is wrong."""
  bad = 0
  for moment in chosen:
    root = directory / _LIVE
    commands = list(COMMANDS)
    before = commands[: commands.index(moment.command)]
    root.mkdir()
    if before:
      shutil.copytree(whole.root / RUN, root / RUN)
    where = [name, str(root), moment.command, str(moment.number)]
    process = subprocess.run([sys.executable, __file__, "--child", *where], check=False)
    if process.returncode != 77:
      print(
        f"{name}, {moment.command} {moment.number}: ended with {process.returncode}"
      )
    killed = root.rename(directory / "killed")
    fault = go_on(moment._replace(root=killed), RUNS[name], whole)
    if fault is not None:
      bad += 1
      print(f"WRONG: {name}, exit before {moment.operation}: {fault}", flush=True)
  return bad


def _child(name: str, root: str, command: str, number: str) -> None:
  """Runs a command in this process, which ends before an operation."""
  left = int(number)

  def before(operation: str, opened: Path | None) -> None:
    nonlocal left
    del operation, opened
    if left == 0:
      os._exit(77)
    left -= 1

  with Watch(Path(root), before).watching():
    COMMANDS[command](Path(root), RUNS[name])


def main(argv: Sequence[str]) -> int:
  """Prints a table of moments and what is wrong; 1 where anything is."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("--exits", type=int, default=0)
  parser.add_argument("--every", type=int, default=1, help="try each so many states")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
  parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.child:
    _child(*args.child)
    return 0
  failed = 0
  for name in args.runs:
    with tempfile.TemporaryDirectory() as temporary:
      directory = Path(temporary)
      whole, found = moments(RUNS[name], directory)
      print(f"{name}: {len(found)} different states", flush=True)
      counts: collections.Counter = collections.Counter()
      for moment in found[:: args.every]:
        fault = go_on(moment, RUNS[name], whole)
        counts[moment.command, moment.cut, fault is None] += 1
        if fault is not None:
          failed += 1
          cut = ", last file cut in half" if moment.cut else ""
          print(f"WRONG: {moment.command}, before {moment.operation}{cut}: {fault}")
          sys.stdout.flush()
      print(
        "| run | command | states | went on, equal bits | file cut in half | equal |"
      )
      for command in COMMANDS:
        cells = [
          counts[command, cut, sound] + (counts[command, cut, True] if not sound else 0)
          for cut in (False, True)
          for sound in (False, True)
        ]
        print(f"| {name} | {command} | {' | '.join(map(str, cells))} |", flush=True)
      chosen = random.Random(args.seed).sample(
        [moment for moment in found if not moment.cut], min(args.exits, len(found))
      )
      if chosen:
        wrong = exits(name, chosen, directory, whole)
        print(f"{name}: {len(chosen)} processes ended by os._exit, {wrong} wrong")
        failed += wrong
  return 1 if failed else 0


if __name__ == "__main__":
  from experiments.bench import kill_every_write  # the name that a config has

  sys.exit(kill_every_write.main(sys.argv[1:]))
