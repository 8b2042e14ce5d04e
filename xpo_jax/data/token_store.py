"""Stores a tokenised data set as flat arrays, from which batches are cut by index.

The arrays of a data set larger than memory are files that are mapped into it
(`ExampleWriter`): in memory are a few numbers of each example and completion, and no
tokens.
"""

import array
import io
import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.data import sealed_files
from xpo_jax.data.tokenise import Example
from xpo_jax.types import Layout

_HEADER = "examples.json"
_ARRAYS = ("tokens", "loss", "piece_start", "group_start", "length", "responses")


class TokenStore(NamedTuple):
  """A data set as flat arrays of concatenated pieces (prompts and completions).

  Attributes:
    tokens: int32, every piece of every example in order.
    loss: bool, True on the tokens with loss.
    piece_start: int64, the offset of each piece in `tokens`, then the total length.
    group_start: int64, the first piece (the prompt) of each example, then the number
      of pieces.
    length: int64, number of tokens of each example.
    responses: int64, number of tokens with loss of each example.
    fields: each float32 [examples, K], 0 beyond an example's completions.
    token_fields: each float32, a number for every token in `tokens`; 0 on prompts.
    T: length of the longest completion, in tokens with loss.
  """

  tokens: np.ndarray
  loss: np.ndarray
  piece_start: np.ndarray
  group_start: np.ndarray
  length: np.ndarray
  responses: np.ndarray
  fields: Mapping[str, np.ndarray]
  token_fields: Mapping[str, np.ndarray]
  T: int


class StoredExamples(Sequence[Example]):
  """Examples of one layout, made anew of the arrays of a store at each access.

  Attributes:
    store: their tokens.
    layout: of all of them.
    uids: UTF-8 bytes of all uids, and the offset of each.
    directory: where files of examples made of these are; None: in memory.
  """

  def __init__(
    self,
    store: TokenStore,
    layout: Layout,
    directory: Path | None,
    uids: tuple[np.ndarray, np.ndarray],
  ):
    """Takes the store and the uids: their bytes, and the offset of each."""
    self.store, self.layout, self.directory = store, layout, directory
    self.uids = uids

  def __len__(self) -> int:
    return len(self.store.group_start) - 1

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[n] for n in range(*index.indices(len(self)))]
    n = range(len(self))[index]
    data, (uids, starts) = self.store, self.uids
    first, end = data.group_start[n], data.group_start[n + 1]
    cuts = list(itertools.pairwise(data.piece_start[first : end + 1].tolist()))
    tokens = [np.array(data.tokens[a:b]) for a, b in cuts]
    masks = tuple(np.array(data.loss[a:b]) for a, b in cuts[1:])
    return Example(
      uid=uids[starts[n] : starts[n + 1]].tobytes().decode(),
      prompt=tokens[0],
      completions=tuple(tokens[1:]),
      layout=self.layout,
      masks=None if all(mask.all() for mask in masks) else masks,
      fields={name: x[n, : len(masks)] for name, x in data.fields.items()},
      token_fields={
        name: tuple(np.array(x[a:b]) for a, b in cuts[1:])
        for name, x in data.token_fields.items()
      },
    )


class ExampleWriter:
  """Writes examples one by one to files without a name, which end with the process.

  They are `tempfile.TemporaryFile`s of a directory, as large as the tokens: 5 bytes a
  token, 4 more for each column with a number per token. Without a directory they are
  kept in memory.
  """

  def __init__(self, directory: Path | None):
    """Takes the directory, on a disk with room, or None."""
    self._directory = directory
    self._layouts: set[Layout] = set()
    self._sizes, self._counts = array.array("q"), array.array("q", [0])
    self._uid_ends = array.array("q", [0])
    self._fields: dict[str, array.array] = {}
    self._files: dict[str, Any] = {}
    self._columns: tuple[list[str], list[str]] | None = None

  def append(self, example: Example) -> None:
    """Writes an example.

    Raises:
      ValueError: another layout or other data columns than the first one's; an empty
        prompt or a completion without loss.
    """
    columns = (sorted(example.fields), sorted(example.token_fields))
    self._columns = self._columns or columns
    self._layouts.add(example.layout)
    if columns != self._columns:
      raise ValueError(
        f"{example.uid}: fields {[*columns[0], *columns[1]]}, but the examples before "
        f"have {[*self._columns[0], *self._columns[1]]}; all examples need the same "
        "columns"
      )
    if len(self._layouts) > 1:
      names = sorted(layout.name for layout in self._layouts)
      raise ValueError(f"examples mix layouts {names}; make one data set of each")
    prompt, completions = example.prompt, example.completions
    masks = example.masks or [np.ones(len(y), bool) for y in completions]
    _check_example(example, masks)
    self._write("tokens", np.int32, [prompt, *completions])
    self._write("loss", bool, [np.zeros(len(prompt), bool), *masks])
    for name, values in example.token_fields.items():
      self._write(f"field {name}", np.float32, [np.zeros(len(prompt)), *values])
    for name, values in example.fields.items():
      self._fields.setdefault(name, array.array("f")).extend(values)
    uid = example.uid.encode()
    self._write("uids", np.uint8, [np.frombuffer(uid, np.uint8)])
    self._uid_ends.append(self._uid_ends[-1] + len(uid))
    self._sizes.extend([len(prompt), *map(len, completions)])
    self._counts.append(1 + len(completions))

  def finish(self) -> StoredExamples:
    """Maps the files into memory; nothing can be written after.

    Raises:
      ValueError: no examples.
    """
    if not self._layouts:
      raise ValueError(
        "examples: the data set is empty; see the audit for dropped records"
      )
    piece_start = np.concatenate([[0], np.cumsum(self._sizes)])
    group_start = np.cumsum(self._counts)
    maps = {name: self._map(*file) for name, file in self._files.items()}
    names, token_names = self._columns
    first = group_start[:-1]
    responses = np.add.reduceat(maps["loss"], piece_start[:-1], dtype=np.int64)
    store = TokenStore(
      tokens=maps["tokens"],
      loss=maps["loss"],
      piece_start=piece_start,
      group_start=group_start,
      length=np.add.reduceat(np.asarray(self._sizes), first),
      responses=np.add.reduceat(responses, first),
      fields={name: self._column(name, group_start) for name in names},
      token_fields={name: maps[f"field {name}"] for name in token_names},
      T=int(responses.max()),
    )
    uids = (maps["uids"], np.asarray(self._uid_ends))
    (layout,) = self._layouts
    return StoredExamples(store, layout, self._directory, uids)

  def _write(self, name: str, kind: Any, pieces: Iterable[np.ndarray]) -> None:
    if name not in self._files:
      directory = self._directory
      file = (
        io.BytesIO() if directory is None else tempfile.TemporaryFile(dir=directory)
      )
      self._files[name] = (file, kind)
    file, _ = self._files[name]
    for piece in pieces:
      file.write(np.ascontiguousarray(piece, kind).tobytes())

  def _map(self, file: Any, kind: Any) -> np.ndarray:
    if isinstance(file, io.BytesIO):
      return np.frombuffer(file.getbuffer(), kind)
    file.flush()
    return np.memmap(file, kind, "r")

  def _column(self, name: str, group_start: np.ndarray) -> np.ndarray:
    counts = np.diff(group_start) - 1
    column = np.zeros((len(counts), int(counts.max())), np.float32)
    column[np.arange(column.shape[1]) < counts[:, None]] = self._fields[name]
    return column


def collected(
  examples: Iterable[Example], like: Sequence[Example]
) -> list[Example] | StoredExamples:
  """Examples made of others, in files where those are."""
  if not isinstance(like, StoredExamples):
    return list(examples)
  writer = ExampleWriter(like.directory)
  for example in examples:
    writer.append(example)
  return writer.finish()


def save(directory: Path, examples: Sequence[Example]) -> None:
  """Writes examples to a new directory, which `load` maps into memory.

  Raises:
    ValueError: see `ExampleWriter.append`.
  """
  if not isinstance(examples, StoredExamples):
    writer = ExampleWriter(None)
    for example in examples:
      writer.append(example)
    examples = writer.finish()
  directory.mkdir()
  store, (uids, uid_start) = examples.store, examples.uids
  arrays = {"uids": uids, "uid_start": uid_start}
  arrays |= {name: getattr(store, name) for name in _ARRAYS}
  for kind in ("fields", "token_fields"):
    arrays |= {f"{kind}.{name}": x for name, x in getattr(store, kind).items()}
  for name, x in arrays.items():
    np.save(directory / f"{name}.npy", x)
  content = {"layout": examples.layout.value, "T": store.T, "arrays": sorted(arrays)}
  sealed_files.write_json(directory / _HEADER, content)


def load(directory: Path, new_files: Path) -> StoredExamples:
  """Maps the examples that `save` wrote into memory.

  Args:
    directory: of them.
    new_files: directory for the files of examples made of these.
  """
  content = sealed_files.read_json(directory / _HEADER)
  arrays = {
    name: np.load(directory / f"{name}.npy", mmap_mode="r")
    for name in content["arrays"]
  }

  def of(kind: str) -> dict[str, np.ndarray]:
    prefix = f"{kind}."
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays[name] for name in names}

  store = TokenStore(
    **{name: arrays[name] for name in _ARRAYS},
    fields=of("fields"),
    token_fields=of("token_fields"),
    T=content["T"],
  )
  uids = (arrays["uids"], arrays["uid_start"])
  return StoredExamples(store, Layout(content["layout"]), new_files, uids)


def build_store(examples: Sequence[Example]) -> TokenStore:
  """Concatenates the examples of a data set into flat arrays, unless they are stored.

  Raises:
    ValueError: no examples; see `ExampleWriter.append`.
  """
  if isinstance(examples, StoredExamples):
    return examples.store
  writer = ExampleWriter(None)
  for example in examples:
    writer.append(example)
  return writer.finish().store


def _check_example(example: Example, masks: Sequence[np.ndarray]) -> None:
  problem = None
  if not len(example.prompt):
    problem = "prompt has no tokens"
  elif not all(mask.any() for mask in masks):
    problem = "completion has no loss"
  if problem is not None:
    raise ValueError(
      f"{example.uid}: {problem}; drop the record or give the tokenizer a BOS"
    )
