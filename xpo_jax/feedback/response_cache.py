"""Caches a judge's responses on disk, for resumed and replayed runs.

The cache is one JSON Lines file with one exchange (request and response) per line,
appended as responses arrive. A process that is killed while writing loses only its last
line.
"""

import fcntl
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE = "exchanges.jsonl"


class ResponseCache:
  """A directory of exchanges, safe to share between threads and processes.

  An exchange is keyed by its content: the request and the index of the draw. Responses
  that another process adds are visible after the directory is opened again; of two
  responses to one request the later one is used.

  Args:
    directory: created if it does not exist.

  Raises:
    ValueError: the file has a line that is not an exchange.
  """

  def __init__(self, directory: str | Path):
    self.path = Path(directory) / _FILE
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._lock = threading.Lock()
    self._responses: dict[str, Any] = {}
    self._failures: dict[str, str] = {}
    with self.path.open("a+b") as file:
      fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
      file.seek(0)
      self._read(file)

  def _read(self, file) -> None:
    valid_bytes = 0
    for number, line in enumerate(file, 1):
      if not line.endswith(b"\n"):
        file.truncate(valid_bytes)  # its writer was killed
        return
      try:
        entry = json.loads(line)
        if "answer" in entry:
          self._responses[entry["key"]] = entry["answer"]
        else:
          self._failures[entry["key"]] = entry["failure"]
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f"{self.path}, line {number} is not an exchange ({error}); delete the line "
          "to send its request again"
        ) from error
      valid_bytes += len(line)

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
    line = json.dumps(entry).encode() + b"\n"
    with self._lock, self.path.open("ab") as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      file.write(line)


def key(request: Mapping[str, Any], draw: int) -> str:
  """Returns the cache key of an exchange, a hash of its content."""
  text = json.dumps([request, draw], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
