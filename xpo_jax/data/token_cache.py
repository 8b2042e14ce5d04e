"""Caches tokenised data sets in a directory, each under the digest of what made it.

Runs that name the directory tokenise equal data once: the same records, tokenizer,
template, limits and split, by the same version of this package and of the tokenizer's.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xpo_jax.data import audit, buckets, sealed_files, token_store
from xpo_jax.data.audit import Audit, Prepared
from xpo_jax.data.records import BadRecord
from xpo_jax.sharding import distributed

_KEY, _AUDIT = "key.json", "audit.json"
_PACKAGES = ("xpo_jax", "tokenizers", "transformers")


def prepared(
  directory: Path,
  key: Mapping[str, Any],
  make: Callable[[], Prepared],
  bad_rows_file: Path,
) -> Prepared:
  """Reads a tokenised data set, or makes and writes it; a collective call.

  Args:
    directory: of the cache; all processes reach it.
    key: all that the data set depends on, plain data.
    make: see `audit.prepare`.
    bad_rows_file: for the list of dropped records, which `make` writes too; what is
      made of the examples later is written beside it.

  Returns:
    The data set, its examples mapped from files; its records are left out.

  Raises:
    ValueError: the directory cannot be made or written to; a file of the cache is
      damaged; what `make` raises.
  """
  key = dict(key) | {name: importlib.metadata.version(name) for name in _PACKAGES}
  text = json.dumps(key, sort_keys=True)
  place = directory / hashlib.sha256(text.encode()).hexdigest()[:32]
  if not distributed.on_first(place.exists):
    distributed.on_first(lambda: _check_writable(directory))
    new = make()
    distributed.on_first(lambda: _write(place, key, new))
  stored = distributed.together(lambda: _read(place, bad_rows_file.parent))
  if stored.audit.bad:
    distributed.on_first(
      lambda: audit.write_bad_records(stored.audit.bad, bad_rows_file)
    )
  return stored


def _check_writable(directory: Path) -> None:
  """Refuses a directory before the tokens are made that are to be written there."""
  try:
    buckets.check_writable(directory)
  except ValueError as error:
    raise ValueError(
      f"Data.token_cache {error}; name a directory that can be written to, or None"
    ) from error


def _write(place: Path, key: Mapping[str, Any], new: Prepared) -> None:
  def save(temporary: Path) -> None:
    temporary.mkdir()
    for name, examples in new.examples.items():
      token_store.save(temporary / name, examples)
    bad = [dataclasses.asdict(one) for one in new.audit.bad]
    content = {"audit": new.audit.summary(), "bad": bad, "splits": list(new.examples)}
    sealed_files.write_json(temporary / _AUDIT, content)
    sealed_files.write_json(temporary / _KEY, key)

  sealed_files.write_directory(place, save)


def _read(place: Path, directory: Path) -> Prepared:
  sealed_files.check_directory(place, "delete the directory: it is made again")
  content = sealed_files.read_json(place / _AUDIT)
  counts = content["audit"]
  counts["first_dropped"] = tuple(counts["first_dropped"])
  return Prepared(
    examples={
      name: token_store.load(place / name, directory) for name in content["splits"]
    },
    records={name: [] for name in content["splits"]},
    audit=Audit(**counts, bad=tuple(BadRecord(**one) for one in content["bad"])),
  )
