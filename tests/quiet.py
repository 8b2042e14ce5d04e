"""A `say` for runs whose lines nobody reads."""


def quiet(text: str) -> None:
  """Prints nothing."""
  del text
