"""Writes the rows of a study of several arms, as JSON and as a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xpo_jax.data import sealed_files
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.report import html
from xpo_jax.studies.task import Task


class ArmRow(NamedTuple):
  """One policy, or one arm's policies over the seeds.

  Attributes:
    label: what it is.
    measures: name -> Interval or number; reward and kl at least.
    seconds: of the steps of its runs, compilation included, stages not.
  """

  label: str
  measures: Mapping[str, Interval | float]
  seconds: float


def write(path: Path, title: str, rows: Sequence[ArmRow], task: Task) -> html.Table:
  """Writes rows as JSON and returns them as a table."""
  content = [
    {
      "label": row.label,
      "seconds": round(row.seconds, 1),
      **{
        name: x._asdict() if isinstance(x, Interval) else x
        for name, x in row.measures.items()
      },
    }
    for row in rows
  ]
  sealed_files.write_json(path, content)
  names = list(dict.fromkeys(name for row in rows for name in row.measures))
  cells = [
    [row.label, *(_cell(row.measures.get(n)) for n in names), f"{row.seconds:.0f}"]
    for row in rows
  ]
  seeds = html.counted(len(task.seeds), "seed")
  caption = (
    f"{title}. Mean [95 %] over {task.eval_prompts} held-out prompts x "
    f"{task.eval_samples} samples and {seeds}; reward: the task's true "
    "reward; change: paired with the reference's; KL to the reference, nats; the "
    "reference is the start where no other is named."
  )
  return html.Table(["", *names, "seconds"], cells, caption)


def _cell(x: Interval | float | None) -> str:
  if x is None:
    return ""
  return str(x) if isinstance(x, Interval) else f"{x:.3g}"
