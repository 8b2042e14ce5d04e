"""Shows the progress of a run: a bar on a terminal, plain lines otherwise."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich import progress

from xpo_jax.data.printable import printable
from xpo_jax.sharding import distributed

Say = Callable[[str], None]
Report = Callable[[Mapping[str, float]], None]


class Stopped(KeyboardInterrupt):
  """A signal ended a run or a study before its end, with a checkpoint; not an error."""


EVALUATOR = "evaluator/"  # of what `Loop.evaluator` measures, shown always
_SHOWN = ("loss", "reward_accuracy", "eval/loss", "eval/reward_accuracy", "grad_norm")


def say(text: str) -> None:
  """Prints a line at once, what a terminal would act on escaped."""
  print(printable(text), flush=True)


def of_first(say: Say) -> Say:
  """Lets the first of several processes print, and no other."""
  return say if distributed.is_first() else silent


def silent(text: str) -> None:
  """Prints nothing."""
  del text


_printed = say  # replaced by a bar on a terminal; other functions get lines


@contextlib.contextmanager
def following(
  steps: int, done: int, say: Say = say, names: Sequence[str] = _SHOWN
) -> Iterator[Report]:
  """Yields a function that shows a line of metrics.

  Args:
    steps: of the whole run.
    done: steps done before.
    say: prints a line; a bar replaces only `progress.say`.
    names: metrics to show; a bar has room for the first two.
  """
  if say is not _printed or not sys.stdout.isatty():
    yield lambda line: say(f"step {int(line['step'])}/{steps}  {describe(line, names)}")
    return
  columns = (
    progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
    progress.BarColumn(bar_width=12),
    progress.TimeRemainingColumn(),
    progress.TextColumn("{task.fields[line]}"),
  )
  with progress.Progress(*columns) as bar:
    task = bar.add_task("", total=steps, completed=done, line="compiling")
    yield lambda line: bar.update(
      task, completed=line["step"], line=describe(line, names[:2])
    )


def describe(line: Mapping[str, float], names: Sequence[str] = _SHOWN) -> str:
  """Formats the metrics of a line that are shown."""
  own = [name for name in line if name.startswith(EVALUATOR)]
  shown = [f"{name} {line[name]:.4g}" for name in (*names, *own) if name in line]
  if "time/tokens_per_second" in line:
    shown.append(f"{line['time/tokens_per_second']:,.0f} tokens/s")
  if "time/evaluation" in line:
    shown.append(f"evaluation {line['time/evaluation']:.3g} s")
  return "  ".join(shown)
