"""Caches a judge's responses on disk, for resumed and replayed runs.

The cache is one JSON Lines file with one exchange (request and response) per line,
appended as responses arrive, each with its checksum. A process that is killed while
writing loses only its last line.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from xpo_jax.data import sealed_files
from xpo_jax.feedback import progress

_FILE = "exchanges.jsonl"


class ResponseCache:
  """A directory of exchanges, safe to share between threads and processes.

  An exchange is keyed by its content: the request and the index of the draw. Responses
  that another process adds are visible after the directory is opened again; of two
  responses to one request the later one is used.

  Args:
    directory: created if it does not exist.
    say: takes a line for the user: that an incomplete exchange was removed.

  Raises:
    ValueError: the file has a line that is damaged or not an exchange.
  """

  def __init__(self, directory: str | Path, say: Callable[[str], None] = progress.say):
    self.path = Path(directory) / _FILE
    self._say = say
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._lock = threading.Lock()
    self._responses: dict[str, Any] = {}
    self._failures: dict[str, str] = {}
    with self.path.open("a+b") as file:
      fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
      self._cut(file)
      file.seek(0)
      self._read(file)

  def _cut(self, file: BinaryIO) -> None:
    """Removes an incomplete last line, whose writer was killed."""
    size = file.seek(0, os.SEEK_END)
    if not size:
      return
    file.seek(size - 1)
    if file.read(1) == b"\n":
      return
    file.seek(0)
    lines, end, _ = file.read().rpartition(b"\n")
    file.truncate(len(lines + end))
    number = (lines + end).count(b"\n") + 1
    self._say(
      f"{self.path}, line {number} was incomplete and is removed: its writer was "
      "killed; the request is sent again where it is needed"
    )

  def _read(self, file: BinaryIO) -> None:
    for number, line in enumerate(file, 1):
      place = f"{self.path}, line {number}"
      try:
        entry, _ = sealed_files.read_line(line.removesuffix(b"\n"), place)
      except ValueError as error:
        raise ValueError(
          f"{error}, or delete the line to send its request again"
        ) from error
      try:
        if "answer" in entry:
          self._responses[entry["key"]] = entry["answer"]
        else:
          self._failures[entry["key"]] = entry["failure"]
      except (KeyError, TypeError) as error:
        raise ValueError(
          f"{place} is not an exchange ({error}); delete the line to send its request "
          "again"
        ) from error

  def find(self, request: Mapping[str, Any], draw: int) -> Any | None:
    """Returns the stored response, or None."""
    return self._responses.get(key(request, draw))

  def find_failure(self, request: Mapping[str, Any], draw: int) -> str | None:
    """Returns the last failure of a request, or None; a response may have followed."""
    return self._failures.get(key(request, draw))

  def store(self, request: Mapping[str, Any], draw: int, response: Any) -> None:
    """Stores a response, any JSON value."""
    self._append(request, draw, {"answer": response})
    self._responses[key(request, draw)] = response

  def store_failure(self, request: Mapping[str, Any], draw: int, failure: str) -> None:
    """Stores a failure; the request has still no response."""
    self._append(request, draw, {"failure": failure})
    self._failures[key(request, draw)] = failure

  def _append(self, request: Mapping[str, Any], draw: int, outcome: Any) -> None:
    entry = {"key": key(request, draw), "draw": draw, "request": request} | outcome
    line = sealed_files.sealed_line(entry).encode()
    with self._lock, self.path.open("a+b") as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      self._cut(file)
      file.write(line)


def key(request: Mapping[str, Any], draw: int) -> str:
  """Returns the cache key of an exchange, a hash of its content."""
  text = json.dumps([request, draw], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
