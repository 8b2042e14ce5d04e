"""Writes files and directories whole, with checksums, and verifies them when read.

What is written appears by a rename of a synchronised temporary file or directory beside
it, so that a kill leaves the old content, the new one, or none. A checksum is stored
with what it covers, so that no kill can separate them: as the last field of a JSON
object, of each line that is appended to a file, or of the first line of a file that is
written at once; as a comment in YAML; as a manifest in a directory. Content without a
checksum (a user's own, or of an older version) is read unverified.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xpo_jax.data import buckets

CHECKSUM = "checksum"
MANIFEST = "MANIFEST.sha256.json"
_BESIDE = ".{}.half"  # no name that a user gives
_MEND = (
  "it was damaged or edited; put it back from a copy (where you edited it yourself, "
  "remove the checksum)"
)


class _Form(NamedTuple):
  """How a checksum is stored at the end of what it covers.

  Attributes:
    before: text before the checksum.
    kind: of the checksum, with a colon.
    digest: computes it.
    after: text after it.
  """

  before: bytes
  kind: bytes
  digest: Callable[[bytes], str]
  after: bytes

  def mark(self, body: bytes) -> bytes:
    return self.before + self.kind + self.digest(body).encode() + self.after


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _crc32(data: bytes) -> str:
  return f"{zlib.crc32(data):08x}"


_FIELD = f'"{CHECKSUM}": "'.encode()
_OBJECT = _Form(_FIELD, b"sha256:", _sha256, b'"\n}\n')
_LIST = _Form(_FIELD, b"sha256:", _sha256, b'"\n }\n]\n')
_FIRST_LINE = _Form(_FIELD, b"sha256:", _sha256, b'"}')
_LINE = _Form(_FIELD, b"crc32:", _crc32, b'"}')
_COMMENT = _Form(f"# {CHECKSUM}: ".encode(), b"sha256:", _sha256, b"\n")


def write_text(path: Path, text: str) -> None:
  """Writes a text file whole or not at all."""
  write_bytes(path, text.encode())


def write_bytes(path: buckets.Directory, data: bytes) -> None:
  """Writes a file whole or not at all."""
  if buckets.is_bucket(path):
    path.write_bytes(data)
    return
  temporary = _beside(path)
  with temporary.open("wb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)
  _synchronise(path.parent)


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
  """Writes JSON whose last field is the checksum of the text before it.

  Args:
    path: of the file.
    content: an object, or a list of objects, of which the last gets the checksum and is
      not empty; an empty list gets none.
  """
  if not isinstance(content, Mapping) and not content:
    write_bytes(path, b"[]\n")
    return
  form = _OBJECT if isinstance(content, Mapping) else _LIST
  body = _encoded(content, indent=1).removesuffix(form.after[1:-1]) + b","
  if not content:  # {},
    body = b"{"
  body += b"\n" + b" " * (1 if form is _OBJECT else 2)
  write_bytes(path, _sealed(body, form))


def read_json(path: Path) -> Any:
  """Reads a JSON file, verified, without its checksum.

  Raises:
    ValueError: it is no JSON, or differs from its checksum.
  """
  data = path.read_bytes()
  content = _parsed(data, str(path))
  form = _LIST if data.rstrip().endswith(b"]") else _OBJECT
  if _verify(data, form, str(path)):
    del (content if form is _OBJECT else content[-1])[CHECKSUM]
  return content


def write_commented(path: Path, text: str) -> None:
  """Writes a text whose comments start with "#", its checksum as the last line."""
  write_bytes(path, _sealed(text.encode(), _COMMENT))


def read_commented(path: Path) -> str:
  """Reads what `write_commented` wrote, verified.

  Raises:
    ValueError: it is no UTF-8, or differs from its checksum.
  """
  data = path.read_bytes()
  _verify(data, _COMMENT, str(path))
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 ({error}): {_MEND}") from error


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSON lines; the first ends with the checksum of all of them.

  Args:
    path: of the file.
    lines: objects; the first is not empty.
  """
  texts = [_encoded(line) for line in lines]
  data = b"".join(text + b"\n" for text in texts[1:])
  if texts:
    sealed = _sealed(data + texts[0].removesuffix(b"}") + b", ", _FIRST_LINE)
    data = sealed[len(data) :] + b"\n" + data
  write_bytes(path, data)


def read_lines(path: Path) -> list[Any]:
  """Reads JSON lines, verified, without their checksum.

  Raises:
    ValueError: a line is no JSON, or the file differs from its checksum.
  """
  data = path.read_bytes()
  first, _, rest = data.partition(b"\n")
  verified = _verify(rest + first, _FIRST_LINE, str(path))
  # Not splitlines: it also splits at characters that JSON does not escape.
  texts = data.removesuffix(b"\n").split(b"\n") if data else []
  lines = [_parsed(text, f"{path}, line {i}") for i, text in enumerate(texts, 1)]
  if verified:
    del lines[0][CHECKSUM]
  return lines


def sealed_line(line: Mapping[str, Any]) -> str:
  """Makes the text of a JSON line, its checksum the last field, to be appended."""
  body = json.dumps(line).removesuffix("}") + ", "
  return _sealed(body.encode(), _LINE).decode() + "\n"


def read_line(text: bytes, place: str) -> tuple[Any, bool]:
  """Reads a line that was made by `sealed_line`, without its end of line.

  Args:
    text: the line.
    place: file and number of the line, for the message.

  Returns:
    The line without its checksum, and whether it had one.

  Raises:
    ValueError: it is no JSON, or differs from its checksum.
  """
  verified = _verify(text, _LINE, place)
  line = _parsed(text, place)
  if verified:
    del line[CHECKSUM]
  return line, verified


def is_sealed_line(text: bytes) -> bool:
  """Whether a text is a whole line with its checksum."""
  return text.endswith(_LINE.mark(text[: -len(_LINE.mark(b""))]))


def write_directory(
  path: Path, write: Callable[[Path], None], *, sealed: bool = True
) -> None:
  """Writes a directory whole or not at all, unless it exists.

  Of several processes that write it at once, as runs that share a cache, one does; the
  others wait for it.

  Args:
    path: the directory.
    write: makes it, under the name that it is given.
    sealed: whether it gets a manifest of checksums.
  """
  temporary = _beside(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with _alone(path.parent):
    shutil.rmtree(temporary, ignore_errors=True)
    if path.exists():
      return
    write(temporary)
    if sealed:
      seal(temporary)
    for file in _files(temporary):
      with file.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.rename(path)
    _synchronise(path.parent)


def remove_directory(path: Path) -> None:
  """Removes a directory; a kill never leaves a part of it under its name."""
  temporary = _beside(path)
  shutil.rmtree(temporary, ignore_errors=True)
  path.rename(temporary)
  shutil.rmtree(temporary)


def is_vacant(directory: Path) -> bool:
  """Whether there is no such directory, or nothing in it but what a kill left of files
  that were being written."""
  if not directory.exists():
    return True
  return all(path.match(_BESIDE.format("*")) for path in directory.iterdir())


def seal(directory: buckets.Directory) -> None:
  """Writes the manifest of a directory: the SHA-256 sum of each file, by name."""
  sums = {
    str(file.relative_to(directory)): file_digest(file) for file in _files(directory)
  }
  sums.pop(MANIFEST, None)
  write_bytes(directory / MANIFEST, (json.dumps(sums, indent=1) + "\n").encode())


def damage(directory: buckets.Directory) -> str | None:
  """Describes the damage of a sealed directory; None where it is as it was sealed.

  Files that the manifest does not name are not looked at.
  """
  manifest = directory / MANIFEST
  if not manifest.exists():
    return f"{MANIFEST} is missing: the save was cut off"
  try:
    sums = json.loads(manifest.read_text(encoding="utf-8"))
  except ValueError:
    return f"{MANIFEST} is not JSON: it was damaged or cut"
  for name, digest in sums.items():
    file = directory / name
    if not file.is_file():
      return f"{name} is missing, or its name in {MANIFEST} was damaged"
    if file_digest(file) != digest:
      return f"{name} differs from its checksum in {MANIFEST}"
  return None


def check_directory(directory: Path, mend: str = "put it back from a copy") -> None:
  """Refuses a directory that is not as it was sealed; one without manifest is not
  checked.

  Raises:
    ValueError: a file is damaged or missing.
  """
  directory = Path(directory)
  if not (directory / MANIFEST).exists():
    return
  if fault := damage(directory):
    raise ValueError(
      f"{directory}: {fault}; {mend} (where you edited it yourself, delete {MANIFEST})"
    )


def file_digest(file: buckets.Directory) -> str:
  """Computes the SHA-256 sum of a file."""
  with file.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(directory: buckets.Directory) -> list[Any]:
  if buckets.is_bucket(directory):
    return buckets.files(directory)
  return sorted(file for file in directory.rglob("*") if file.is_file())


def _beside(path: Path) -> Path:
  return path.with_name(_BESIDE.format(path.name))


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
  """Waits until no other process or thread is in this block for a directory, where the
  file system has locks; a kill ends the block."""
  handle = os.open(directory, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(handle, fcntl.LOCK_EX)
    yield
  finally:
    os.close(handle)


def _synchronise(directory: Path) -> None:
  """Makes a rename in a directory durable, where the file system can."""
  with contextlib.suppress(OSError):
    handle = os.open(directory, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)


def _sealed(body: bytes, form: _Form) -> bytes:
  return body + form.mark(body)


def _verify(data: bytes, form: _Form, place: str) -> bool:
  """Whether data has a checksum; refuses data that differ from it."""
  length = len(form.mark(b""))
  if data.endswith(form.mark(data[:-length])):
    return True
  # Either is left of a checksum in which one byte was changed.
  tail = data[-length - len(CHECKSUM) :]
  if CHECKSUM.encode() in tail or re.search(form.kind + b"[0-9a-f]{8}", tail):
    raise ValueError(f"{place} differs from its checksum: {_MEND}")
  return False


def _encoded(content: Any, indent: int | None = None) -> bytes:
  text = json.dumps(content, indent=indent, ensure_ascii=False)
  try:
    return text.encode()
  except UnicodeEncodeError:  # a lone surrogate, which JSON can escape
    return json.dumps(content, indent=indent).encode()


def _parsed(data: bytes, place: str) -> Any:
  try:
    return json.loads(data.decode())
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{place} is not JSON ({error}): it was damaged or cut; put it back from a copy"
    ) from error
