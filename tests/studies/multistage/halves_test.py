"""Halves share no record and name every record apart."""

from xpo_jax.data.records import Demonstration
from xpo_jax.studies.multistage import halves


def test_halves_share_no_record_and_leave_none_out():
  rows = [Demonstration(f"row {i}", "x", str(i)) for i in range(5)]
  sources = (rows[:3], rows)  # records of one name in both
  first, second = (halves.half(sources, which=x) for x in ("first", "second"))
  texts = [row.completion for row in rows[:3] + rows]
  assert [row.completion for row in first] == texts[::2]
  assert [row.completion for row in second] == texts[1::2]
  assert len({row.uid for row in first + second}) == len(texts)
