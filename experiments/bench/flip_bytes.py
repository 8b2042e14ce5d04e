"""Changes single bytes of run directories and tabulates whether commands notice.

    python experiments/bench/flip_bytes.py --flips 300 --seed 0

The runs are those of `kill_every_write.py`, finished and evaluated, and stopped after
the first of two steps. A flip changes one byte of one file, the kinds of files in turn.
Then the commands that read the directory are given: `report` and `resume` to a stopped
run; `report`, `generate`, `export`, `evaluate`, `resume` to a finished one. A flip is

- caught: a command refuses the directory in one line that names the file,
- said: a command names the file, goes on without it, and ends with the same result,
- harmless: every command ends with the result that it has without the flip,
- NOT CAUGHT: anything else.

Needs no accelerator; about half an hour on two cores.
"""

import argparse
import collections
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

from experiments.bench import kill_every_write  # noqa: E402
from experiments.bench.kill_every_write import EXPORT, LIMIT, RUN, RUNS  # noqa: E402
from tests.train import compare  # noqa: E402
from xpo_jax.config.experiment import Experiment  # noqa: E402
from xpo_jax.evaluation import evaluate_run  # noqa: E402
from xpo_jax.models.generation_config import GenerationConfig  # noqa: E402
from xpo_jax.report import run_page  # noqa: E402
from xpo_jax.train import loop  # noqa: E402

OUTCOMES = ("caught", "said", "harmless", "NOT CAUGHT")
Say = Callable[[str], None]


class Stopped(BaseException):
  """Ends a run after its first checkpoint."""


def train(root: Path, experiment: Experiment) -> None:
  """Trains a run to its end, evaluates it and writes its page."""
  loop.train(experiment, root / RUN, say=kill_every_write.quiet)
  kill_every_write.evaluate(root, experiment)
  kill_every_write.report(root, experiment)


def stop(root: Path, experiment: Experiment) -> None:
  """Trains a run until the metrics of its second step are written."""

  def say(text: str) -> None:
    if text.startswith(("step 2/", "iteration 2/")):
      raise Stopped

  try:
    loop.train(experiment, root / RUN, say=say)
  except Stopped:
    return
  raise ValueError("the run was not stopped: its lines of progress have changed")


def resume(root: Path, say: Say) -> object:
  """Goes on; returns the bits of the result and its metrics."""
  loop.resume(root / RUN, say=say)
  run = root / RUN
  arrays = [x.tobytes() for x in compare.leaves(run)]
  policy = [file.read_bytes() for file in sorted((run / "policy").iterdir())]
  return arrays, policy, compare.lines(run)


def report(root: Path, say: Say) -> object:
  """Writes the page; returns it."""
  del say
  return run_page.write(root / RUN).read_bytes()


def generate(root: Path, say: Say) -> object:
  """Samples from the policy; returns the texts."""
  del say
  return evaluate_run.generate(root / RUN, ["This film is"], GenerationConfig(LIMIT))


def export(root: Path, say: Say) -> object:
  """Exports the policy; returns the files."""
  del say
  evaluate_run.export(root / RUN, root / EXPORT)
  return {path.name: path.read_bytes() for path in sorted((root / EXPORT).iterdir())}


def evaluate(root: Path, say: Say) -> object:
  """Evaluates the policy; returns what is written."""
  del say
  evaluated = evaluate_run.evaluate_run(
    root / RUN, prompts=4, completions=2, max_completion_tokens=LIMIT
  )
  return (root / RUN / evaluate_run.FILE).read_bytes(), evaluated.policy.texts


# How a directory is made, and the commands that are given to it.
STATES = {
  "stopped": (stop, (report, resume)),
  "finished": (train, (report, generate, export, evaluate, resume)),
}


class Sound(NamedTuple):
  """An unchanged directory.

  Attributes:
    root: where it is kept.
    live: where it was made, and where commands are given to copies of it.
    commands: of its state.
    results: of the commands.
  """

  root: Path
  live: Path
  commands: Sequence[Callable[[Path, Say], object]]
  results: list[object]


def sound(state: str, experiment: Experiment, directory: Path) -> Sound:
  """Makes a directory, and what commands do with it."""
  make, commands = STATES[state]
  live = directory / "live"
  live.mkdir(parents=True)
  make(live, experiment)
  root = live.rename(directory / "sound")
  shutil.copytree(root, live)
  results = [command(live, kill_every_write.quiet) for command in commands]
  shutil.rmtree(live)
  return Sound(root, live, commands, results)


def kind(name: Path) -> str:
  """The kind of a file: numbers and digests in its name left out."""
  parts = [part for part in name.parts if not part.isdigit()]
  if "stages" in parts:
    parts[parts.index("stages") + 1] = "STAGE"
  if "checkpoints" in parts:
    last = "array" if len(parts[-1]) == 32 else parts[-1]  # of tensorstore
    return "/".join([*parts[: parts.index("checkpoints") + 1], last])
  if "tensorboard" in parts:
    parts[-1] = "events"
  if parts[-1].removesuffix(".jsonl").isdigit():
    parts[-1] = "N.jsonl"
  return "/".join(parts)


def kinds(root: Path) -> dict[str, list[Path]]:
  """The files of a run by their kinds; empty files have no byte to change."""
  found: dict[str, list[Path]] = {}
  for path in sorted((root / RUN).rglob("*")):
    if path.is_file() and path.stat().st_size:
      name = path.relative_to(root / RUN)
      found.setdefault(kind(name), []).append(name)
  return found


def flip(sound: Sound, name: Path, at: int, bits: int) -> tuple[str, str]:
  """Changes a byte of a copy and gives the commands.

  Args:
    sound: the unchanged directory.
    name: of the file, in the run.
    at: index of the byte.
    bits: that change.

  Returns:
    The outcome, and what was said of it.
  """
  shutil.copytree(sound.root, sound.live)
  file = sound.live / RUN / name
  data = bytearray(file.read_bytes())
  data[at] ^= bits
  file.write_bytes(data)
  said: list[str] = []
  # A checkpoint is named by its step, files of a directory by their own names too.
  names = {name.name, str(name)}
  try:
    for command, result in zip(sound.commands, sound.results, strict=True):
      try:
        same = command(sound.live, said.append) == result
      except ValueError as error:
        text = str(error)
        named = any(part in text for part in names) and type(error) is ValueError
        return ("caught" if named else "NOT CAUGHT"), f"{command.__name__}: {text}"
      except Exception as error:  # the finding: an error of another name
        return "NOT CAUGHT", f"{command.__name__}: {type(error).__name__}: {error}"
      if not same:
        return "NOT CAUGHT", f"{command.__name__}: another result"
  finally:
    shutil.rmtree(sound.live)
  lines = [line for line in said if any(part in line for part in names)]
  return ("said", lines[0]) if lines else ("harmless", "")


def main(argv: Sequence[str]) -> int:
  """Prints a table by run, state and kind of file; 1 where a flip is not caught."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("--flips", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
  args = parser.parse_args(argv)
  rng = random.Random(args.seed)
  counts: collections.Counter = collections.Counter()
  with tempfile.TemporaryDirectory() as temporary:
    places = []
    for name in args.runs:
      for state in STATES:
        one = sound(state, RUNS[name], Path(temporary) / f"{name}-{state}")
        places += [(name, state, one, k, files) for k, files in kinds(one.root).items()]
    rng.shuffle(places)
    print(f"{len(places)} kinds of files", flush=True)
    for number in range(args.flips):
      name, state, one, what, files = places[number % len(places)]
      file = rng.choice(files)
      size = (one.root / RUN / file).stat().st_size
      at, bits = rng.randrange(size), rng.randrange(1, 256)
      outcome, text = flip(one, file, at, bits)
      counts[name, state, what, outcome] += 1
      if outcome == OUTCOMES[-1]:
        print(f"NOT CAUGHT: {name}, {state}, {file}, byte {at} ^ {bits}: {text}")
        sys.stdout.flush()
  print(f"| run | state | file | {' | '.join(OUTCOMES)} |\n|{'---|' * 7}")
  for place in sorted({key[:3] for key in counts}):
    cells = [counts[*place, outcome] for outcome in OUTCOMES]
    print(f"| {' | '.join(map(str, [*place, *cells]))} |")
  totals = [sum(n for key, n in counts.items() if key[-1] == o) for o in OUTCOMES]
  print(f"| all | | | {' | '.join(map(str, totals))} |")
  return 1 if totals[-1] else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
