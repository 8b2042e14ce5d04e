"""Halves of several sources of records, for a train and a test reward model."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from xpo_jax.data.records import Record


def half(
  sources: Sequence[Sequence[Record]], *, which: Literal["first", "second"]
) -> list[Record]:
  """Every second record of the sources together, each under a name of its own.

  Args:
    sources: records; in an experiment a `Configured` each.
    which: half; the two share no record.
  """
  start = {"first": 0, "second": 1}[which]
  rows = [
    dataclasses.replace(row, uid=f"source {number} {row.uid}")
    for number, source in enumerate(sources, 1)
    for row in source
  ]
  return rows[start::2]
