"""Directories in buckets, gs:// and s3://, beside those of the file system.

`etils.epath` gives their paths the methods of `pathlib`; Google's are read and written
by gcsfs, Amazon's by s3fs (the extra `bucket`). An object of a bucket appears whole or
not at all, so no temporary file stands beside it.
"""

import importlib.util
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
  from etils import epath

# The package that reads and writes a bucket, and its name within fsspec.
_LIBRARIES = {"gs://": ("gcsfs", "gcs"), "s3://": ("s3fs", "s3")}

Directory: TypeAlias = "Path | epath.Path"


def check_name(text: str) -> None:
  """Refuses what names neither a whole path nor a directory in a bucket.

  Raises:
    ValueError: the name is relative, or of another kind of URL.
  """
  scheme, separator, _ = text.partition("://")
  allowed = ", ".join(_LIBRARIES)
  if separator and scheme + separator not in _LIBRARIES:
    raise ValueError(f"{text} is of no known bucket; allowed: {allowed}")
  if not separator and not Path(text).is_absolute():
    raise ValueError(
      f"{text} is relative, and a run may be resumed from elsewhere; give a whole "
      f"path, or a bucket: {allowed}"
    )


def directory(text: str) -> Directory:
  """The directory of a name: of `pathlib`, or of `etils.epath` where it is in a bucket.

  Raises:
    ValueError: see `check_name`; the package that reads the bucket is not installed.
  """
  check_name(text)
  scheme, separator, _ = text.partition("://")
  if not separator:
    return Path(text)
  library, protocol = _LIBRARIES[scheme + separator]
  if importlib.util.find_spec(library) is None:
    raise ValueError(
      f"{text} is read by {library}, which is not installed; pip install "
      "'xpo_jax[bucket]'"
    )
  import fsspec  # slow to import, as the next is
  from etils import epath

  # What another process has written must be seen.
  fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
  return epath.Path(text)


def is_bucket(place: Directory) -> bool:
  """Whether a path is in a bucket."""
  return not isinstance(place, Path)


def names(place: Directory) -> list[str]:
  """What is in a directory, sorted; nothing where there is no such directory."""
  try:
    return sorted(path.name for path in place.iterdir())
  except FileNotFoundError:
    return []


def files(place: Directory) -> list[Directory]:
  """Every file within a directory; `epath` has no recursive patterns for buckets."""
  found = []
  for path in sorted(place.iterdir()):
    found += files(path) if path.is_dir() else [path]
  return found


def remove(place: Directory) -> None:
  """Removes a directory."""
  if isinstance(place, Path):
    shutil.rmtree(place)
  else:
    place.rmtree()


def write_mark(place: Directory) -> str:
  """Writes an empty file with a name of its own; returns the name."""
  name = f".{secrets.token_hex(8)}"
  (place / name).write_bytes(b"")
  return name


def check_writable(place: Directory) -> None:
  """Refuses a directory that this process cannot write; makes it where it is absent.

  Raises:
    ValueError: it cannot be written; says why.
  """
  try:
    place.mkdir(parents=True, exist_ok=True)
    (place / write_mark(place)).unlink()
  except Exception as error:  # each library of buckets has its own
    raise ValueError(
      f"{place} cannot be written here ({type(error).__name__}: {error})"
    ) from error
