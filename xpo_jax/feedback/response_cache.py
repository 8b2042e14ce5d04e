"""Every exchange with a judge on disk: nothing is paid twice, and a run replays.

One JSON Lines file, one line an exchange, appended as answers come in. A process that
is killed in the middle of a line loses that line only.
"""

import fcntl
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE = "exchanges.jsonl"


class Exchanges:
  """A folder of exchanges, safe to share between threads and processes.

  An exchange is found by its content: the request, and the number of the draw. Answers
  that another process adds are found after opening the folder again; asked twice at
  the same time, both answers are kept and the last one counts.

  Args:
    directory: made if it is not there.

  Raises:
    ValueError: a line in it that is not an exchange.
  """

  def __init__(self, directory: str | Path):
    self.path = Path(directory) / _FILE
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._lock = threading.Lock()
    self._answers: dict[str, Any] = {}
    self._failures: dict[str, str] = {}
    with self.path.open("a+b") as file:
      fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
      file.seek(0)
      self._read(file)

  def _read(self, file) -> None:
    good = 0
    for number, line in enumerate(file, 1):
      if not line.endswith(b"\n"):
        file.truncate(good)  # its writer was killed
        return
      try:
        entry = json.loads(line)
        if "answer" in entry:
          self._answers[entry["key"]] = entry["answer"]
        else:
          self._failures[entry["key"]] = entry["failure"]
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f"{self.path}, line {number} is not an exchange ({error}); delete the line, "
          "and its question is asked again"
        ) from error
      good += len(line)

  def find(self, request: Mapping[str, Any], draw: int) -> Any | None:
    """The answer on disk, or None."""
    return self._answers.get(key(request, draw))

  def find_failure(self, request: Mapping[str, Any], draw: int) -> str | None:
    """What went wrong with it last, or None; it may have been answered since."""
    return self._failures.get(key(request, draw))

  def keep(self, request: Mapping[str, Any], draw: int, answer: Any) -> None:
    """Writes an answer, anything JSON can hold."""
    self._append(request, draw, {"answer": answer})
    self._answers[key(request, draw)] = answer

  def keep_failure(self, request: Mapping[str, Any], draw: int, failure: str) -> None:
    """Writes what went wrong; the question stays open."""
    self._append(request, draw, {"failure": failure})
    self._failures[key(request, draw)] = failure

  def _append(self, request: Mapping[str, Any], draw: int, outcome: Any) -> None:
    entry = {"key": key(request, draw), "draw": draw, "request": request} | outcome
    line = json.dumps(entry).encode() + b"\n"
    with self._lock, self.path.open("ab") as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      file.write(line)


def key(request: Mapping[str, Any], draw: int) -> str:
  """Names an exchange by its content."""
  text = json.dumps([request, draw], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
