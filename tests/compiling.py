"""What is compiled while a block runs, by name; eager operations are named too."""

import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
  """A list that grows by a name for each program compiled or read from the cache."""
  names: list[str] = []

  def listen(event: str, seconds: float, **about: str) -> None:
    del seconds
    if event == _EVENT:
      names.append(about["fun_name"])

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield names
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
