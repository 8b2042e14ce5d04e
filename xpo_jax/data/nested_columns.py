"""Columns of a row under the convention's names, also from lists of objects."""

from collections.abc import Mapping
from typing import Any


def sources(row: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, str]:
  """Where each column is: its name -> "column", or "list.field".

  Args:
    row: as it stands in the file.
    rename: file's column to convention's column; see `sources.Reading`. A list that
      some "list.field" is taken from is itself no column any more.
  """
  nested = {
    name: source
    for source, name in rename.items()
    if source not in row and "." in source and source.partition(".")[0] in row
  }
  taken = {source.partition(".")[0] for source in nested.values()}
  return {rename.get(name, name): name for name in row if name not in taken} | nested


def take(row: Mapping[str, Any], source: str) -> Any:
  """The column, or the field of each object of the list.

  Raises:
    LookupError: no list of objects that all have the field.
  """
  if source in row:
    return row[source]
  column, _, field = source.partition(".")
  items = row[column]
  if not isinstance(items, (list, tuple)) or not all(
    isinstance(item, Mapping) and field in item for item in items
  ):
    raise LookupError(f"{column} is no list of objects with {field!r}")
  return [item[field] for item in items]
