"""Names of splits: one, or several of which a data set has some."""

from collections.abc import Collection


def find(wanted: str, known: Collection[str], where: str) -> str:
  """The first of the wanted splits that a data set has.

  Args:
    wanted: a name, or several with "|" between them ("train|train_prefs"). TFDS's
      slices may follow a name ("train[:10%]").
    known: the splits of the data set.
    where: its name, for the message.

  Raises:
    ValueError: it has none of them; names those it has.

  Example:
    >>> find("train|train_prefs", ["test_prefs", "train_prefs"], "a data set")
    'train_prefs'
  """
  for name in wanted.split("|"):
    if name.partition("[")[0] in known:
      return name
  listed = ", ".join(sorted(known))
  raise ValueError(
    f"{where} has no split {wanted!r}; it has {listed} (--data.split, or "
    "--evaluation.split of held-out data)"
  )
