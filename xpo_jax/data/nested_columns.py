"""Reads columns of a JSON row by their standard names, also from lists of objects."""

from collections.abc import Mapping
from typing import Any


def locate_columns(row: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, str]:
  """Maps each standard column name to its source in the row: "column" or "list.field".

  Args:
    row: the row as parsed from the file.
    rename: the file's column name to the standard one; see `sources.Reading`. A list
      from which a "list.field" is read is no longer a column itself.
  """
  nested = {
    name: source
    for source, name in rename.items()
    if source not in row and "." in source and source.partition(".")[0] in row
  }
  lists = {source.partition(".")[0] for source in nested.values()}
  return {rename.get(name, name): name for name in row if name not in lists} | nested


def read_column(row: Mapping[str, Any], source: str) -> Any:
  """Returns a column's value, or the field's value in each object of a list.

  Raises:
    LookupError: the column is not a list of objects that all have the field.
  """
  if source in row:
    return row[source]
  column, _, field = source.partition(".")
  items = row[column]
  if not isinstance(items, (list, tuple)) or not all(
    isinstance(item, Mapping) and field in item for item in items
  ):
    raise LookupError(f"{column} is not a list of objects with {field!r}")
  return [item[field] for item in items]
