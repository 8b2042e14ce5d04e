"""What recipes of several stages report: a row for each arm, as JSON and as a table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xpo_jax.evaluation import bootstrap
from xpo_jax.report import html
from xpo_jax.studies.multistage.staged_world import World


class Row(NamedTuple):
  """One policy, or one arm's policies over the seeds.

  Attributes:
    label: what it is.
    measures: name -> Interval or number; reward, kl and length at least.
    seconds: of its stages, compilation included, the shared SFT not.
  """

  label: str
  measures: Mapping[str, bootstrap.Interval | float]
  seconds: float


def write(path: Path, title: str, rows: Sequence[Row], world: World) -> html.Table:
  """Writes rows as JSON and returns them as a table."""
  content = [
    {
      "label": row.label,
      "seconds": round(row.seconds, 1),
      **{
        name: x._asdict() if isinstance(x, bootstrap.Interval) else x
        for name, x in row.measures.items()
      },
    }
    for row in rows
  ]
  path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
  names = list(dict.fromkeys(name for row in rows for name in row.measures))
  cells = [
    [row.label, *(_cell(row.measures.get(n)) for n in names), f"{row.seconds:.0f}"]
    for row in rows
  ]
  caption = (
    f"{title}. Mean [95 %] over {world.prompts} held-out prompts x {world.samples} "
    f"samples and {len(world.seeds)} seeds; reward: VADER; change: paired with the SFT "
    "model's; KL to the SFT model, nats."
  )
  return html.Table(["", *names, "seconds"], cells, caption)


def _cell(x: bootstrap.Interval | float | None) -> str:
  if x is None:
    return ""
  return str(x) if isinstance(x, bootstrap.Interval) else f"{x:.3g}"
