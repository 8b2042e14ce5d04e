"""Reads files and data sets as records, by the column conventions of TRL.

| columns | record |
|---|---|
| `prompt`, `chosen`, `rejected` | Pair |
| `chosen`, `rejected` | Pair; the prompt is their common prefix (below) |
| `prompt`, `completions`, `rewards` | Ranked |
| `prompt`, `completions`, `labels` | Stepped: the steps of one completion |
| `prompt`, `completion`, `label` (bool) and / or `reward` | Rated |
| `prompt`, `completion` | Demonstration |
| `messages` | Demonstration: the last assistant turn, or all of them |
| `text` | Demonstration: the first `prompt_words` words are the prompt |
| `prompt` | Prompt |

A text is a string, or a list of `{"role", "content"}` messages; what else a message
holds ("tool_calls", "reasoning_content") reaches the chat template, as do the columns
`tools`, `documents` and `chat_template_kwargs` of a row with messages. A content that
is a list of text parts is joined. The shared prompt of a pair is its equal leading
messages; in HH transcripts everything up to the last "\\n\\nAssistant:"; in other
strings the longest common prefix, cut at a space. An optional column `id` becomes the
record's uid; a pair's optional `probability` is that of the chosen completion being
preferred, its optional `margin` by how much it is to be ahead. A prompt that is a
string before completions of messages is one message of the user; where the completions
begin with the prompt's messages, as in UltraFeedback binarized, those are left out of
them. Data sets with other columns: `schemas`.
"""

import codecs
import dataclasses
import difflib
import functools
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from xpo_jax.data import nested_columns, records
from xpo_jax.data.formats import schemas
from xpo_jax.data.formats.schemas import Schema
from xpo_jax.data.record_stream import RecordStream
from xpo_jax.data.records import BadRecord, Turn, UnusableRecord

_ASSISTANT = "\n\nAssistant:"
_NOT_UTF8 = "not UTF-8"  # problem of a row
_COLUMNS = {  # kind: its required columns; the first kind that fits is used
  "pair": ("chosen", "rejected"),
  "ranked": ("prompt", "completions", "rewards"),
  "stepped": ("prompt", "completions", "labels"),
  "rated": ("prompt", "completion", "label"),
  "rewarded": ("prompt", "completion", "reward"),
  "demonstration": ("prompt", "completion"),
  "conversation": ("messages",),
  "text": ("text",),
  "prompt": ("prompt",),
}
_FIRST = 10  # rows whose form tells whether they are of a schema
_SYNONYMS = {  # of other data sets; for a message only
  "question": "prompt",
  "query": "prompt",
  "instruction": "prompt",
  "problem": "prompt",
  "answer": "completion",
  "response": "completion",
  "output": "completion",
  "solution": "completion",
  "responses": "completions",
  "scores": "rewards",
  "score": "reward",
}
_OPTIONAL = {"pair": ("prompt", "probability", "margin"), "rated": ("reward",)}
# Columns that the chat template may read, of rows with messages.
_FOR_TEMPLATE = {"tools": list, "documents": list, "chat_template_kwargs": Mapping}
_RESERVED = frozenset(
  {"conversation", "messages", "tokenize", "add_generation_prompt", "chat_template"}
)
_NUMBERS = ("probability", "margin", "reward")  # optional, but in all rows or none
# Bytes of rows that are read once; the records of more are read anew with every pass.
HELD_BYTES = 2**26
_LARGEST = 3.4028234663852886e38  # of float32


@dataclasses.dataclass(frozen=True)
class Loaded:
  """The records of a source.

  Attributes:
    name: the file's name, or the data set's.
    records: the valid records, in order: a tuple, or of a source of more than
      `HELD_BYTES` a `RecordStream`.
    bad: the others.
    sha256: of the file's bytes, or of the rows as JSON.
    unused: columns that records do not use, and the number of rows with a value there.
  """

  name: str
  records: Sequence[records.Record]
  bad: tuple[BadRecord, ...]
  sha256: str
  unused: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reading:
  """Options for reading records.

  Attributes:
    kind: one of the kinds of columns ("pair", "ranked", "stepped", "rated",
      "rewarded", "demonstration", "conversation", "text", "prompt"); None: inferred
      from the columns.
    prompt_words: number of leading words of a `text` that form its prompt; required
      for that kind only.
    loss_on: which assistant turns of a conversation carry loss: the last, or all.
    rename: the file's column to the standard column. "responses.text" reads the `text`
      of each object in the list `responses`, as a column of lists.
    transcripts: strings of "\n\nHuman:" and "\n\nAssistant:" (HH) are "text", or
      "messages" for the chat template.
    columns: further columns that stay with a prompt, for a reward that reads them; a
      row without one cannot be used. Every record is then its prompt.
  """

  kind: str | None = None
  prompt_words: int | None = None
  loss_on: Literal["last", "all"] = "last"
  rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
  transcripts: Literal["text", "messages"] = "text"
  columns: tuple[str, ...] = ()

  def __post_init__(self):
    if self.kind is not None and self.kind not in _COLUMNS:
      raise ValueError(f"kind: {self.kind!r} is none of {sorted(_COLUMNS)}")
    if self.loss_on not in ("last", "all"):
      raise ValueError(f"loss_on: {self.loss_on!r} is none of ['all', 'last']")
    if self.transcripts not in ("text", "messages"):
      raise ValueError(
        f"transcripts: {self.transcripts!r} is none of ['text', 'messages']"
      )
    if self.prompt_words is not None and self.prompt_words < 1:
      raise ValueError(f"prompt_words: {self.prompt_words} is not positive")


def read_jsonl(path: str | os.PathLike, reading: Reading = Reading()) -> Loaded:
  """Reads JSON lines, plain or gzipped (suffix `.gz`).

  Raises:
    FileNotFoundError: no such file.
    ValueError: an empty file, columns that fit no kind, or a `text` file without
      `prompt_words`. Bad records do not raise: they are in `Loaded.bad`.
  """
  path = Path(path)
  source = _Source(path.name, lambda: json_lines(path), file_size(path))
  if source.is_held:
    rows = list(source.rows())
    source = source._replace(rows=lambda: iter(rows))
  first = next((row for _, row in source.rows() if not _is_not_utf8(row)), None)
  if first is None and next(source.rows(), None) is None:
    raise ValueError(
      f"{path.name}: the file is empty; it needs one JSON object per line"
    )
  if first is None:
    raise ValueError(f"{path.name}: no line is UTF-8 text; save the file as UTF-8")
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  return _read(source, digest, reading)


def _is_not_utf8(row: Any) -> bool:
  return isinstance(row, BadRecord) and row.problem == _NOT_UTF8


def file_size(path: Path) -> int:
  """Bytes of the rows of a file; of one that is compressed by gzip an estimate."""
  return path.stat().st_size * (5 if path.suffix == ".gz" else 1)


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
  """Yields the name and value of each line of a file that is not empty; of a line that
  cannot be read, a `BadRecord`.

  Args:
    path: JSON lines, plain or gzipped (suffix `.gz`).

  Raises:
    FileNotFoundError: no such file.
    ValueError: a broken `.gz`.
  """
  number = 0
  with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
    # By line feeds alone: a JSON string may contain U+2028 and similar unescaped.
    while True:
      try:
        line = file.readline()
      except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name}: a broken .gz: {error}") from error
      if not line:
        return
      number += 1
      if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
      if line.strip():
        uid = f"{path.name}:{number}"
        yield uid, _parsed(uid, line.removesuffix(b"\n"))


def _parsed(uid: str, line: bytes) -> Any:
  """The JSON of a line, or the `BadRecord` of one that is none."""
  number = uid.rpartition(":")[2]
  try:
    return json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    detail = f"line {number}: {error}; save the file as UTF-8"
    return BadRecord(uid, _NOT_UTF8, detail, repr(line[:200]))
  except (ValueError, RecursionError) as error:  # also an integer of 5,000 digits
    detail = f"line {number}: {error or type(error).__name__}"
    return BadRecord(uid, "not JSON", detail, line.decode("utf-8")[:200])


def from_dicts(
  rows: Iterable[Mapping[str, Any] | BadRecord],
  name: str,
  reading: Reading = Reading(),
) -> Loaded:
  """Reads records from Python dictionaries; raises as `read_jsonl`.

  A `BadRecord` stands for a row that could not be read.
  """
  held = list(rows)
  return from_rows(lambda: iter(held), name, 0, reading)


def from_rows(
  rows: Callable[[], Iterator[Mapping[str, Any] | BadRecord]],
  name: str,
  size: int,
  reading: Reading = Reading(),
) -> Loaded:
  """Reads records from rows that can be read again; raises as `read_jsonl`.

  Args:
    rows: begins a pass over the rows; a `BadRecord` stands for one that could not be
      read.
    name: of the source.
    size: of the rows in bytes; above `HELD_BYTES` they are read anew for each pass.
    reading: how rows are read.
  """
  source = _Source(
    name,
    lambda: ((f"{name}:{number}", row) for number, row in enumerate(rows(), 1)),
    size,
  )
  if source.is_held:
    held = list(source.rows())
    source = source._replace(rows=lambda: iter(held))
  digest, empty = hashlib.sha256(), True
  for _, row in source.rows():
    try:
      text = json.dumps(row, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):  # a bad row
      text = _shown(row)
    digest.update(text.encode() + b"\n")
    empty = False
  if empty:
    raise ValueError(f"{name}: the data set is empty")
  return _read(source, digest.hexdigest(), reading)


class _Source(NamedTuple):
  """Rows that can be read again.

  Attributes:
    name: for messages.
    rows: begins a pass over the name and value of each row.
    size: of the rows in bytes.
  """

  name: str
  rows: Callable[[], Iterator[tuple[str, Any]]]
  size: int

  @property
  def is_held(self) -> bool:
    """Whether its records are kept in memory."""
    return self.size <= HELD_BYTES

  def good(self) -> Iterator[tuple[str, Any]]:
    """The rows that could be read."""
    return ((uid, row) for uid, row in self.rows() if not isinstance(row, BadRecord))


class _Parsed(NamedTuple):
  """A record and the row that it is of, as it was read."""

  record: records.Record
  row: Mapping[str, Any]


def _read(source: _Source, sha256: str, reading: Reading) -> Loaded:
  name, names = source.name, _names(source.good(), reading)
  schema = None if reading.kind else _schema_of(source, names, reading)
  if schema is not None:
    name += f" (columns of {schema.name})"
  kind = reading.kind or _kind_of(names, name, schema)
  if kind == "text" and reading.prompt_words is None:
    raise ValueError(
      f"{name}: column 'text' has no prompt; set how many words form it "
      "(prompt_words, for example 4)"
    )
  parse = functools.partial(_parse, kind=kind, schema=schema, reading=reading)
  used = {*_COLUMNS[kind], *_OPTIONAL.get(kind, ()), "id", *reading.columns}
  unreadable, bad, held = [], [], []
  given, unused, count = Counter[str](), Counter[str](), 0
  for uid, row in source.rows():
    parsed = row if isinstance(row, BadRecord) else parse(uid, row)
    if isinstance(parsed, BadRecord):
      (unreadable if parsed is row else bad).append(parsed)
      continue
    count += 1
    given.update(n for n in _NUMBERS if vars(parsed.record).get(n) is not None)
    unused.update(_unused(parsed, used))
    if source.is_held:
      held.append(parsed)

  def whole() -> Iterator[_Parsed | BadRecord]:
    """A pass over the records; those that lack a number that others have are bad."""
    parsed = iter(held)
    if not source.is_held:
      every = (parse(uid, row) for uid, row in source.good())
      parsed = (one for one in every if isinstance(one, _Parsed))
    return (_with_numbers(one, given) for one in parsed)

  if any(number < count for number in given.values()):
    unused, count = Counter[str](), 0
    for one in whole():
      if isinstance(one, BadRecord):
        bad.append(one)
      else:
        count += 1
        unused.update(_unused(one, used))

  def good() -> Iterator[records.Record]:
    return (one.record for one in whole() if isinstance(one, _Parsed))

  return Loaded(
    name,
    tuple(good()) if source.is_held else RecordStream(good, count),
    (*unreadable, *bad),
    sha256,
    dict(sorted(unused.items())),
  )


def _parse(
  uid: str, row: Any, *, kind: str, schema: Schema | None, reading: Reading
) -> _Parsed | BadRecord:
  """The record of a row, or what is wrong with it."""
  try:
    row = _renamed(uid, row, reading)
    if schema is not None:
      row = schema.convert(row)
    if reading.transcripts == "messages":
      row = {
        name: schemas.turns(value) if isinstance(value, str) else value
        for name, value in row.items()
      }
    _require(row, kind)
    record = _PARSERS[kind](_uid(row, uid), row, reading)
    if not isinstance(record.prompt, str):
      arguments = _template_arguments(row)
      record = dataclasses.replace(record, template_arguments=arguments)
    if reading.columns:
      record = _with_columns(record, row, reading.columns)
    problem = records.find_problem(record)
  except UnusableRecord as error:
    return BadRecord(uid, error.problem, error.detail, row)
  except Exception as error:  # no row ends a run by another name
    detail = f"{type(error).__name__}: {error}"[:300]
    return BadRecord(uid, "cannot be read", detail, row)
  if problem is not None:
    return dataclasses.replace(problem, row=row)
  return _Parsed(record, row)


def _with_numbers(parsed: _Parsed, given: Iterable[str]) -> _Parsed | BadRecord:
  """A record, unless it lacks an optional number that other records have."""
  values = vars(parsed.record)
  absent = [name for name in _NUMBERS if name in given and values.get(name) is None]
  if not absent:
    return parsed
  detail = f"other rows have {absent[0]!r}; give it in every row, or in none"
  return BadRecord(parsed.record.uid, "missing column", detail, parsed.row)


def _unused(parsed: _Parsed, used: set[str]) -> set[str]:
  """The columns of a row that hold a value and that its record does not use."""
  of_messages = not isinstance(parsed.record.prompt, str)
  read = used | (set(_FOR_TEMPLATE) if of_messages else set())
  return {name for name, value in parsed.row.items() if value is not None} - read


def _with_columns(
  record: records.Record, row: Mapping[str, Any], names: tuple[str, ...]
) -> records.Prompt:
  """The prompt of a record with columns of its row."""
  for name in names:
    if row.get(name) is None:
      near = difflib.get_close_matches(name, row, n=1)
      meant = f" (did you mean {near[0]!r}?)" if near else ""
      raise UnusableRecord(
        "missing column", f"{name!r}{meant} is not among {sorted(row)}"
      )
  return records.Prompt(
    record.uid,
    record.prompt,
    {name: _plain(row[name], name) for name in names},
    template_arguments=record.template_arguments,
  )


def _uid(row: Mapping[str, Any], uid: str) -> str:
  """A row's own id; else its file and line."""
  return uid if row.get("id") is None else _string(str(row["id"]), "id")


def _template_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
  """The columns of a row that the chat template reads beside the messages."""
  found = {}
  for column, kind in _FOR_TEMPLATE.items():
    value = row.get(column)
    if value is None:
      continue
    if isinstance(value, str):  # some data sets hold it as JSON
      try:
        value = json.loads(value)
      except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
      wanted = "a list" if kind is list else "an object"
      raise UnusableRecord(
        "not for the template", f"{column} is {_shown(row[column])}, and not {wanted}"
      )
    found[column] = _plain(value, column)
  extra = found.pop("chat_template_kwargs", {})
  reserved = sorted(_RESERVED & set(extra))
  if reserved:
    raise UnusableRecord(
      "not for the template",
      f"chat_template_kwargs has {reserved[0]}, which is set here",
    )
  return found | extra


def _renamed(uid: str, row: Any, reading: Reading) -> dict[str, Any]:
  if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
    raise UnusableRecord("not a JSON object", f"got {_shown(row)}")
  located = nested_columns.locate_columns(row, reading.rename)
  try:
    return {
      name: nested_columns.read_column(row, source) for name, source in located.items()
    }
  except LookupError as error:
    raise UnusableRecord("missing column", str(error.args[0])) from error


def _names(rows, reading: Reading) -> set[str]:
  """The columns of all rows together."""
  names = set()
  for _, row in rows:
    if isinstance(row, Mapping):
      names.update(nested_columns.locate_columns(row, reading.rename))
  return names


def _schema_of(source: _Source, names: set[str], reading: Reading) -> Schema | None:
  """The data set whose columns the rows have, in its form, unless they are those of a
  record with completions, or a column of it was asked for by its name."""
  schema = schemas.find(names)
  if schema is None or schema.columns.intersection(reading.columns):
    return None
  own = next((set(c) for c in _COLUMNS.values() if names.issuperset(c)), None)
  if own is None:
    return schema  # rows of another form are bad rows of it
  if not own <= schema.columns and own != {"prompt"}:
    return None
  first = itertools.islice(source.good(), _FIRST)
  fits = any(_fits(schema, uid, row, reading) for uid, row in first)
  return schema if fits else None


def _fits(schema: Schema, uid: str, row: Any, reading: Reading) -> bool:
  try:
    return schema.fits(_renamed(uid, row, reading))
  except UnusableRecord:
    return False


def _kind_of(names: set[str], name: str, schema: Schema | None) -> str:
  """Infers the kind of record from the columns of all rows together."""
  if schema is not None:
    names = (names - schema.columns) | schema.gives
  if not names:
    return "prompt"  # every row is bad and already listed as such
  fits = (kind for kind, columns in _COLUMNS.items() if names.issuperset(columns))
  kind = next(fits, None)
  known = set().union(*_COLUMNS.values())
  if kind is None or (kind == "prompt" and len(names & known) > 1):
    allowed = {each: list(columns) for each, columns in _COLUMNS.items()}
    raise ValueError(
      f"{name}: missing column: {sorted(names)} match no kind of record; rename them "
      f"({_renaming(names)}) to the columns of one of {allowed}"
    )
  return kind


def _renaming(names: set[str]) -> str:
  """The flag that would rename columns, as far as their names tell."""
  meant = {name: _SYNONYMS[name] for name in sorted(names) if name in _SYNONYMS}
  missing = sorted(set().union(*_COLUMNS.values()) - names)
  for name in sorted(names - set(meant)):
    if near := difflib.get_close_matches(name, missing, n=1):
      meant[name] = near[0]
  words = " ".join(f"{old}={new}" for old, new in meant.items())
  return f"perhaps --data.reading.rename {words}" if words else "rename"


def _require(row: Mapping[str, Any], kind: str) -> None:
  for column in _COLUMNS[kind]:
    if row.get(column) is None:
      raise UnusableRecord(
        "missing column",
        f"{column!r} is not among {sorted(row)}; {kind} needs {list(_COLUMNS[kind])}",
      )


def _text(value: Any, column: str) -> str | tuple[Turn, ...]:
  if isinstance(value, str):
    return _string(value, column)
  if not isinstance(value, (list, tuple)) or not all(
    isinstance(turn, Mapping) and "role" in turn for turn in value
  ):
    raise UnusableRecord(
      "not a text",
      f"{column} is {_shown(value)}, neither a string nor a list of role and content",
    )
  return tuple(_turn(turn, column) for turn in value)


def _turn(message: Mapping[str, Any], column: str) -> Turn:
  role, content = message["role"], message.get("content")
  other = {
    key: _plain(value, f"{key} in {column}")
    for key, value in message.items()
    if key not in ("role", "content") and value is not None
  }
  if isinstance(content, (list, tuple)):
    content = "".join(_part(part, column) for part in content)
  if not isinstance(role, str) or not role:
    raise UnusableRecord(
      "not a message", f"a role in {column} is {_shown(role)}, and must be a name"
    )
  if content is None and not other:
    raise UnusableRecord(
      "not a message", f"a message of {role!r} in {column} has no content"
    )
  if content is not None and not isinstance(content, str):
    raise UnusableRecord(
      "not a message",
      f"a content in {column} is {_shown(content)}; it must be a string, or a list of "
      '{"type": "text", "text"}',
    )
  role = _string(role, f"a role in {column}")
  if content is not None:
    content = _string(content, f"a content in {column}")
  return Turn(role, content, other=other)


def _part(part: Any, column: str) -> str:
  """The text of one part of a message's content."""
  if isinstance(part, Mapping) and part.get("type", "text") == "text":
    text = part.get("text")
    if isinstance(text, str):
      return text
  kind = part.get("type") if isinstance(part, Mapping) else part
  raise UnusableRecord(
    "not a text",
    f"a content in {column} has a part of type {_shown(kind)}; only text is read",
  )


def _string(value: Any, column: str) -> str:
  """A string that UTF-8 has."""
  if not isinstance(value, str):
    raise UnusableRecord("not a text", f"{column} is {_shown(value)}, and not a string")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise UnusableRecord(
      "lone surrogate",
      f"{column} has {value[error.start]!r} at character {error.start}, half of a "
      "character; it was cut, or escaped in a wrong way: mend it in the file",
    ) from error
  return value


def _plain(value: Any, column: str) -> Any:
  """Data of lists, objects, strings and numbers, for the chat template."""
  try:
    json.dumps(value, ensure_ascii=False).encode("utf-8")
  except UnicodeEncodeError:
    raise UnusableRecord(
      "lone surrogate", f"{column} has half of a character; mend it in the file"
    ) from None
  except (TypeError, ValueError, RecursionError) as error:
    raise UnusableRecord(
      "not for the template", f"{column} is no JSON: {error}"
    ) from error
  return value


def _list(row: Mapping[str, Any], column: str) -> list[Any]:
  """A column that is a list."""
  value = row[column]
  if not isinstance(value, (list, tuple)):
    raise UnusableRecord(
      "not a list", f"{column} is {_shown(value)}, and must be a list"
    )
  return list(value)


def _shown(value: Any) -> str:
  """A value's type and beginning, for a message."""
  try:
    text = repr(value)
  except (ValueError, RecursionError):  # an integer of 5,000 digits; deep nesting
    return f"a {type(value).__name__}"
  return f"a {type(value).__name__} ({text[:60]}{'...' if len(text) > 60 else ''})"


def _with_loss(text, reading: Reading):
  """Marks the assistant turns of a completion that carry loss."""
  if isinstance(text, str):
    return text
  assistant = [i for i, turn in enumerate(text) if turn.role == "assistant"]
  marked = assistant if reading.loss_on == "all" else assistant[-1:]
  return tuple(
    dataclasses.replace(turn, loss=i in marked) for i, turn in enumerate(text)
  )


def _pair(uid: str, row: Mapping[str, Any], reading: Reading) -> records.Record:
  chosen, rejected = (_text(row[name], name) for name in ("chosen", "rejected"))
  if isinstance(chosen, str) != isinstance(rejected, str):
    raise UnusableRecord(
      "text and messages", "one of chosen and rejected is a string, the other messages"
    )
  if chosen == rejected:
    raise UnusableRecord(
      "identical chosen and rejected", "the record states no preference"
    )
  if row.get("prompt") is not None:
    prompt = _text(row["prompt"], "prompt")
    prompt, (chosen, rejected) = _in_one_form(prompt, (chosen, rejected))
  else:
    end = _prompt_end(chosen, rejected)
    prompt = chosen[:end]
    chosen = chosen[end:]
    rejected = rejected[end:]
  probability = row.get("probability")
  if probability is not None:
    probability = _number(probability, "probability")
    if not 0 <= probability <= 1:
      raise UnusableRecord(
        "not a probability", f"probability is {probability}; it must lie in [0, 1]"
      )
  margin = row.get("margin")
  return records.Pair(
    uid,
    prompt,
    _with_loss(chosen, reading),
    _with_loss(rejected, reading),
    probability=probability,
    margin=None if margin is None else _number(margin, "margin"),
  )


def _in_one_form(prompt, completions):
  """A prompt and its completions as messages, where the completions are messages: the
  prompt is then those that the completions begin with, if they do, and a string is a
  message of the user."""
  if any(isinstance(text, str) for text in completions):
    return prompt, completions
  if isinstance(prompt, str):
    begins = [[turn.role for turn in text[:1]] for text in completions]
    if all(roles == ["assistant"] for roles in begins):
      return (Turn("user", prompt),), completions
    start = 1 + int(all(roles == ["system"] for roles in begins))
    last = [text[start - 1 : start] for text in completions]
    asks = all(
      [(turn.role, (turn.content or "").strip()) for turn in turns]
      == [("user", prompt.strip())]
      for turns in last
    )
    if not asks or len({text[:start] for text in completions}) > 1:
      return prompt, completions
    return completions[0][:start], tuple(text[start:] for text in completions)
  count = len(prompt)
  if count and all(text[:count] == prompt for text in completions):
    return prompt, tuple(text[count:] for text in completions)
  return prompt, completions


def _prompt_end(chosen, rejected) -> int:
  """Returns the length of the prompt that two transcripts share."""
  if isinstance(chosen, str) and _ASSISTANT in chosen:
    ends = [text.rfind(_ASSISTANT) + len(_ASSISTANT) for text in (chosen, rejected)]
    if chosen[: ends[0]] != rejected[: ends[1]]:
      raise UnusableRecord(
        "no shared prompt",
        "chosen and rejected differ before the last '\\n\\nAssistant:' "
        f"({ends[0]} and {ends[1]} characters); give a prompt column",
      )
    return ends[0]
  shorter = min(len(chosen), len(rejected))
  differing = (i for i in range(shorter) if chosen[i] != rejected[i])
  common = next(differing, shorter)
  if isinstance(chosen, str):
    # Cut before a word; the completions start with the space.
    common = max(chosen.rfind(" ", 0, common), 0)
  elif common == shorter:
    common = max(common - 1, 0)  # one continues the other: leave a turn in both
  if not common:
    raise UnusableRecord(
      "no shared prompt",
      "chosen and rejected have no common prefix; give a prompt column",
    )
  return common


def _ranked(uid: str, row: Mapping[str, Any], reading: Reading) -> records.Record:
  completions = tuple(_text(text, "completions") for text in _list(row, "completions"))
  rewards = tuple(_number(reward, "rewards") for reward in _list(row, "rewards"))
  prompt, completions = _in_one_form(_text(row["prompt"], "prompt"), completions)
  completions = tuple(_with_loss(text, reading) for text in completions)
  return records.Ranked(uid, prompt, completions, rewards)


def _stepped(uid: str, row: Mapping[str, Any], reading: Reading) -> records.Record:
  del reading
  steps = tuple(
    _string(step, "a step in completions") for step in _list(row, "completions")
  )
  labels = tuple(
    2.0 * label - 1 if isinstance(label, bool) else _number(label, "labels")
    for label in _list(row, "labels")
  )
  return records.Stepped(uid, _text(row["prompt"], "prompt"), steps, labels)


def _rated(uid: str, row: Mapping[str, Any], reading: Reading) -> records.Record:
  label, reward = row.get("label"), row.get("reward")
  if label is not None and not (
    isinstance(label, bool | int | float) and label in (0, 1)
  ):
    raise UnusableRecord(
      "not a binary label", f"label is {_shown(label)}; it must be true or false"
    )
  completion = _text(row["completion"], "completion")
  prompt, (completion,) = _in_one_form(_text(row["prompt"], "prompt"), (completion,))
  return records.Rated(
    uid,
    prompt,
    _with_loss(completion, reading),
    desirable=None if label is None else bool(label),
    reward=None if reward is None else _number(reward, "reward"),
  )


def _demonstration(
  uid: str, row: Mapping[str, Any], reading: Reading
) -> records.Record:
  completion = _text(row["completion"], "completion")
  prompt, (completion,) = _in_one_form(_text(row["prompt"], "prompt"), (completion,))
  return records.Demonstration(uid, prompt, _with_loss(completion, reading))


def _conversation(uid: str, row: Mapping[str, Any], reading: Reading) -> records.Record:
  turns: Any = _text(row["messages"], "messages")
  if isinstance(turns, str):
    raise UnusableRecord("not a text", "messages is a string, not a list of messages")
  assistant = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
  if not assistant:
    raise UnusableRecord("empty completion", "messages contain no assistant turn")
  start = assistant[0] if reading.loss_on == "all" else assistant[-1]
  completion = _with_loss(turns[start:], reading)
  return records.Demonstration(uid, turns[:start], completion)


def _prefix_and_completion(
  uid: str, row: Mapping[str, Any], reading: Reading
) -> records.Record:
  # The space before the next word belongs to the completion, as BPE tokens have it.
  words = rf"\s*\S+(?:\s+\S+){{{reading.prompt_words - 1}}}"
  text = _string(row["text"], "text")
  match = re.match(words, text)
  if match is None:
    raise UnusableRecord(
      "empty completion", f"text has fewer than {reading.prompt_words} words"
    )
  return records.Demonstration(uid, match.group(), text[match.end() :])


def _prompt(uid: str, row: Mapping[str, Any], reading: Reading) -> records.Record:
  return records.Prompt(uid, _text(row["prompt"], "prompt"))


def _number(value: Any, column: str) -> float:
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  except OverflowError:
    number = math.inf
  if math.isnan(number):
    raise UnusableRecord("not a number", f"{column} contains {_shown(value)}")
  if abs(number) > _LARGEST:
    raise UnusableRecord(
      "number too large",
      f"{column} contains {_shown(value)}; a float32 is at most {_LARGEST:.2g}",
    )
  return number


_PARSERS: dict[str, Callable[[str, Mapping[str, Any], Reading], records.Record]] = {
  "pair": _pair,
  "ranked": _ranked,
  "stepped": _stepped,
  "rated": _rated,
  "rewarded": _rated,
  "demonstration": _demonstration,
  "conversation": _conversation,
  "text": _prefix_and_completion,
  "prompt": _prompt,
}
