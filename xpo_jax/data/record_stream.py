"""Records that are read anew with every pass, of a source larger than memory."""

import itertools
from collections.abc import Callable, Iterator, Sequence

from xpo_jax.data.records import Record


class RecordStream(Sequence[Record]):
  """Records in their order, none of which is held.

  An index or a slice reads from the beginning on: iterate where all are needed.
  """

  def __init__(self, read: Callable[[], Iterator[Record]], count: int):
    """Takes what begins a pass, and the number of records.

    Args:
      read: returns an iterator over all records; called for every pass.
      count: number of records.
    """
    self._read, self._count = read, count

  def __len__(self) -> int:
    return self._count

  def __iter__(self) -> Iterator[Record]:
    """Reads the records.

    Raises:
      ValueError: their number is another one: the source changed meanwhile.
    """
    number = 0
    for number, record in enumerate(self._read(), 1):
      if number > self._count:
        break
      yield record
    if number != self._count:
      raise ValueError(
        f"the source of {self._count} records has another number of them now: it "
        "changed while it was read"
      )

  def __getitem__(self, index):
    if isinstance(index, slice):
      return tuple(itertools.islice(self._read(), *index.indices(self._count)))
    at = range(self._count)[index]
    return next(itertools.islice(self._read(), at, None))

  def where(self, chosen: Callable[[Record], bool], count: int) -> "RecordStream":
    """The records that a function chooses, of which there are `count`."""
    return RecordStream(lambda: filter(chosen, self._read()), count)

  def first(self, count: int) -> "RecordStream":
    """The first `count` records, or all."""
    count = min(count, self._count)
    return RecordStream(lambda: itertools.islice(self._read(), count), count)


def concatenated(parts: Sequence[Sequence[Record]]) -> RecordStream:
  """The records of several sources, one after the other."""
  count = sum(map(len, parts))
  return RecordStream(lambda: itertools.chain.from_iterable(parts), count)
