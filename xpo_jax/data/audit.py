"""Audits the data of a run: counts, bad records, digests, tokens and loss masks."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from xpo_jax.data import records, sealed_files, split, token_store, tokenise
from xpo_jax.data.pack import Batch
from xpo_jax.data.record_stream import RecordStream
from xpo_jax.data.render import Template
from xpo_jax.data.sources import Loaded
from xpo_jax.data.token_rows import TokenInfo, TokenRows
from xpo_jax.data.token_store import ExampleWriter, StoredExamples
from xpo_jax.data.tokenise import Counts, Example, Lengths, Limits, Tokenised
from xpo_jax.sharding import distributed

_CHUNK = 256  # records that are tokenised at once


@dataclasses.dataclass(frozen=True)
class Audit:
  """Counts over the records of a source.

  Attributes:
    source: name of the source.
    source_sha256: hash of its bytes.
    rows: number of records read, valid or not.
    kept: number of records that became examples.
    dropped: number of dropped records by problem; `bad` lists them.
    first_dropped: the first of them, each with its problem.
    truncated_prompts, truncated_completions, trailing_turns, control_tokens, unread:
      see `tokenise.Counts`.
    repeated_prompts: number of examples whose prompt an earlier example has.
    repeated_rows: number of examples that equal an earlier one: tokens, masks, columns.
    lengths: of prompts and completions; see `percentiles`.
    unused_columns: see `sources.Loaded`.
    labels: number of examples labelled "desirable" and "undesirable"; empty without
      such labels.
    splits: per split: "examples", "prompts", "tokens", the longest "prompt_tokens"
      and "completion_tokens", and "sha256" of the examples.
    bad: the dropped records.
  """

  source: str
  source_sha256: str
  rows: int
  kept: int
  dropped: Mapping[str, int]
  first_dropped: tuple[str, ...]
  truncated_prompts: int
  truncated_completions: int
  trailing_turns: int
  control_tokens: int
  unread: Mapping[str, int]
  repeated_prompts: int
  repeated_rows: int
  lengths: Mapping[str, Mapping[str, int | None]]
  unused_columns: Mapping[str, int]
  labels: Mapping[str, int]
  splits: Mapping[str, Mapping[str, int | str]]
  bad: tuple[records.BadRecord, ...] = ()

  def summary(self) -> dict[str, Any]:
    """Returns all fields but `bad`, ready for JSON."""
    fields = [field.name for field in dataclasses.fields(self) if field.name != "bad"]
    return {name: vars(self)[name] for name in fields}


class Prepared(NamedTuple):
  """A source, split and tokenised.

  Attributes:
    examples: per split, in the order of the source; in files (`StoredExamples`) where
      the source is a `RecordStream`.
    records: per split, the record of each example; empty where the source is one.
    audit: the counts.
  """

  examples: dict[str, Sequence[Example]]
  records: dict[str, list[records.Record]]
  audit: Audit


def prepare(
  loaded: Loaded,
  tokenizer: PreTrainedTokenizerBase,
  *,
  fractions: Mapping[str, float],
  template: Template = Template(),
  limits: Limits = Limits(),
  seed: int = 0,
  bad_rows: Literal["stop", "drop"] = "stop",
  bad_rows_file: str | os.PathLike | None = None,
  directory: Path | None = None,
) -> Prepared:
  """Splits a source by prompt, tokenises it, and counts every record.

  Args:
    loaded: the source.
    tokenizer: see `tokenise.tokenise`.
    fractions: share of the prompts per split; see `split.by_prompt`.
    template: how a record is rendered as text.
    limits: maximum lengths.
    seed: data seed of the split.
    bad_rows: "stop" at any bad record, or "drop" them, counted and listed in a file.
    bad_rows_file: the file, in JSON lines; required to drop any.
    directory: for the tokens of a `RecordStream`; required for one.

  Returns:
    Examples and records per split, and the audit.

  Raises:
    BadRecords: there are bad records and `bad_rows` is "stop".
    ValueError: an unknown `bad_rows`, bad records to drop but no file, or no valid
      record.
  """
  if bad_rows not in ("stop", "drop"):
    raise ValueError(f"bad_rows: {bad_rows!r} is none of ['drop', 'stop']")
  split.check_fractions(fractions)
  held = not isinstance(loaded.records, RecordStream)
  tally = _Tally()
  sinks = {name: [] if held else ExampleWriter(directory) for name in fractions}
  kept: dict[str, list[records.Record]] = {name: [] for name in fractions}
  members = dict.fromkeys(fractions, 0)
  tokenised = functools.partial(
    tokenise.tokenise_valid, tokenizer=tokenizer, template=template, limits=limits
  )
  for chunk in _chunks(loaded.records):
    for record, example in tally.add(chunk, tokenised(chunk)):
      name = split.name_of(split.prompt_text(record), fractions, seed)
      members[name] += 1
      sinks[name].append(example)
      if held:
        kept[name].append(record)
  bad = (*loaded.bad, *tally.bad)
  if bad and bad_rows == "stop":
    raise records.BadRecords(bad)
  if bad and bad_rows_file is None:
    raise ValueError(
      f"bad_rows_file: None; name a file to list the {len(bad)} bad records in"
    )
  if bad:
    write_bad_records(bad, bad_rows_file)
  if not tally.kept:
    raise ValueError(
      f"{loaded.name}: none of {len(bad)} records is valid; see {bad_rows_file}"
    )
  split.check_members(members, fractions)
  examples = {name: x if held else x.finish() for name, x in sinks.items()}
  return Prepared(
    examples=examples,
    records=kept,
    audit=Audit(
      source=loaded.name,
      source_sha256=loaded.sha256,
      rows=len(loaded.records) + len(loaded.bad),
      kept=tally.kept,
      dropped=dict(Counter(one.problem for one in bad)),
      first_dropped=listed(bad),
      **vars(tally.counts),
      repeated_prompts=tally.kept - len(tally.prompts),
      repeated_rows=tally.kept - len(tally.rows),
      lengths={
        "prompt": percentiles(tally.lengths.prompt, limits.prompt),
        "completion": percentiles(tally.lengths.completion, limits.completion),
      },
      unused_columns=loaded.unused,
      labels=tally.labels,
      splits={name: _count(rows) for name, rows in examples.items()},
      bad=bad,
    ),
  )


def _chunks(rows: Iterable[records.Record]) -> Iterator[list[records.Record]]:
  """So many records that tokenising them at once is fast, and their texts are few."""
  rest = iter(rows)
  while chunk := list(itertools.islice(rest, _CHUNK)):
    yield chunk


class _Tally:
  """Counts over the tokenised chunks of a source.

  Attributes:
    kept: number of records that became examples.
    bad: the others.
    counts, lengths: see `tokenise.Tokenised`.
    prompts, rows: digests of the different ones.
  """

  def __init__(self):
    self.kept = 0
    self.bad: list[records.BadRecord] = []
    self.counts = Counts()
    self.lengths = Lengths(Counter(), Counter())
    self.prompts: set[int] = set()
    self.rows: set[int] = set()
    self._desirable: Counter[bool | None] = Counter()

  def add(
    self, chunk: Sequence[records.Record], tokenised: Tokenised
  ) -> Iterable[tuple[records.Record, Example]]:
    """Adds a chunk; returns its valid records and their examples."""
    dropped = set(map(id, tokenised.dropped))
    valid = [record for record in chunk if id(record) not in dropped]
    self.kept += len(valid)
    self.bad += tokenised.bad
    self.counts = self.counts + tokenised.counts
    self.lengths.prompt.update(tokenised.lengths.prompt)
    self.lengths.completion.update(tokenised.lengths.completion)
    self.prompts.update(_short(split.prompt_text(row).encode()) for row in valid)
    self.rows.update(map(_row_digest, tokenised.examples))
    self._desirable.update(
      row.desirable for row in valid if isinstance(row, records.Rated)
    )
    return zip(valid, tokenised.examples, strict=True)

  @property
  def labels(self) -> dict[str, int]:
    """See `Audit.labels`."""
    by_label = self._desirable
    counts = {"desirable": by_label[True], "undesirable": by_label[False]}
    return counts if any(counts.values()) else {}


def _short(*parts: bytes) -> int:
  """A digest of 8 bytes: of ten million different texts two are taken for equal with a
  probability of 3e-6."""
  sha = hashlib.blake2b(digest_size=8)
  for part in parts:
    sha.update(part)
  return int.from_bytes(sha.digest(), "big")


def _row_digest(example: Example) -> int:
  """Hashes what an example trains on."""
  masks = example.masks or [np.ones(len(y), bool) for y in example.completions]
  by_token = example.token_fields
  arrays = [example.prompt, *example.completions, *masks]
  arrays += [x for name in sorted(by_token) for x in by_token[name]]
  arrays += [example.fields[name] for name in sorted(example.fields)]
  sizes = json.dumps([len(x) for x in arrays]).encode()
  return _short(sizes, *(x.tobytes() for x in arrays))


def percentiles(counts: Mapping[int, int], limit: int | None) -> dict[str, int | None]:
  """Percentiles of lengths, each the length of a member (nearest rank).

  Args:
    counts: length in tokens -> number of texts of that length, before the limit.
    limit: longest that is allowed, or None.

  Returns:
    "p50", "p90", "p99", "max" in tokens; "limit"; "over", the number above it. The
    lengths are 0 where there is no text.

  Example:
    >>> percentiles({10: 8, 20: 1, 70: 1}, 50)
    {'p50': 10, 'p90': 20, 'p99': 70, 'max': 70, 'limit': 50, 'over': 1}
  """
  lengths = np.array(sorted(counts), np.int64)
  below = np.cumsum([counts[length] for length in lengths.tolist()])
  summary = {"p50": 0, "p90": 0, "p99": 0, "max": 0}
  for name, share in zip(summary, (50, 90, 99, 100), strict=True):
    if lengths.size:
      rank = -(-share * int(below[-1]) // 100)
      summary[name] = int(lengths[np.searchsorted(below, rank)])
  over = sum(n for length, n in counts.items() if limit is not None and length > limit)
  return summary | {"limit": limit, "over": over}


def length_lines(counts: Mapping[str, Any]) -> list[str]:
  """Formats the lengths of `Audit.summary`, a line for prompts and for completions."""
  lines = []
  for name, one in counts["lengths"].items():
    shown = ", ".join(f"{key} {one[key]:,}" for key in ("p50", "p90", "p99", "max"))
    limit = "no limit"
    if one["limit"] is not None:
      limit = f"limit {one['limit']:,}: {one['over']:,} over it"
    lines.append(f"{name} tokens: {shown}; {limit}")
  return lines


def overlap(train: Iterable[np.ndarray], held_out: Iterable[np.ndarray]) -> int:
  """Counts different held-out prompts that are also trained on, by their tokens."""
  trained, held = ({_short(x.tobytes()) for x in side} for side in (train, held_out))
  return len(held & trained)


def listed(bad: Sequence[records.BadRecord]) -> tuple[str, ...]:
  """The first bad records, a line each."""
  return tuple(f"{one.uid}: {one.problem}: {one.detail}"[:300] for one in bad[:5])


def notes(counts: Mapping[str, Any]) -> list[str]:
  """Says what of the data is not read, left out, or may be meant otherwise.

  Args:
    counts: `Audit.summary`, or those of a run on rollouts, which lack some.

  Returns:
    Lines; none where all was read.
  """
  lines = [f"dropped {line}" for line in counts.get("first_dropped", ())]
  names = {
    "unused_columns": "columns that nothing reads",
    "unread": "not used by the chat template",
  }
  for name, words in names.items():
    listed = ", ".join(f"{key} ({n:,} rows)" for key, n in counts.get(name, {}).items())
    if listed:
      lines.append(f"{words}: {listed}")
  if "conversion" in counts:
    lines.append(f"converted by {counts['conversion']}")
  if counts.get("trailing_turns"):
    lines.append(
      "turns after the last that is trained on, left out: "
      f"{counts['trailing_turns']:,} rows"
    )
  if counts.get("control_tokens"):
    lines.append(
      f"special tokens spelled by the data: {counts['control_tokens']:,} rows; "
      "Template.control_tokens says how they are encoded"
    )
  if counts.get("beyond_positions"):
    lines.append(
      f"more tokens than the start's positions: {counts['beyond_positions']:,} rows"
    )
  if "adapted_layers" in counts:
    lines.append(f"adapters on: {', '.join(counts['adapted_layers'])}")
  if counts.get("repeated_rows"):
    lines.append(f"rows that repeat an earlier row: {counts['repeated_rows']:,}")
  if counts.get("overlap"):
    lines.append(
      f"held-out prompts that are also trained on: {counts['overlap']:,}; what is "
      "measured on them is not held out"
    )
  for name, field in {"prompt": "prompts", "completion": "completions"}.items():
    one = counts.get("lengths", {}).get(name, {})
    if one.get("over"):
      lines.append(
        f"{field} longer than limits.{name} = {one['limit']:,} tokens: {one['over']:,}"
      )
  for label, n in counts.get("labels", {}).items():
    if not n:
      lines.append(f"no row is {label}: what is learned from such rows is missing")
  return lines


def write_bad_records(
  bad: Sequence[records.BadRecord], path: str | os.PathLike
) -> None:
  """Writes dropped records as JSON lines: uid, problem, detail and the row itself."""
  if not distributed.is_first():
    return
  lines = map(_json_line, bad)
  sealed_files.write_text(Path(path), "\n".join(lines) + "\n")


def _json_line(bad: records.BadRecord) -> str:
  named = {"uid": bad.uid, "problem": bad.problem, "detail": bad.detail}
  try:
    return json.dumps(named | {"row": bad.row}, default=str)
  except (TypeError, ValueError, RecursionError):  # too deep, or a number too long
    return json.dumps(named | {"row": None})


def _count(examples: Sequence[Example]) -> dict[str, int | str]:
  data = token_store.build_store(examples)
  size = np.diff(data.piece_start)
  is_prompt = np.zeros(len(size), bool)
  is_prompt[data.group_start[:-1]] = True
  return {
    "examples": len(examples),
    "prompts": len({_short(example.prompt.tobytes()) for example in examples}),
    "tokens": int(data.length.sum()),
    "prompt_tokens": int(size[is_prompt].max()),
    "completion_tokens": int(size[~is_prompt].max()),
    "sha256": digest(examples),
  }


def digest(examples: Sequence[Example]) -> str:
  """Hashes what is trained on (sha256): tokens, masks, layouts and data columns.

  It depends on the order of the examples, not on their uids; template and truncation
  enter through the tokens.
  """
  data = token_store.build_store(examples)
  if isinstance(examples, StoredExamples):
    layouts = [examples.layout.value] * len(examples)
  else:
    layouts = [example.layout.value for example in examples]
  sha = hashlib.sha256(json.dumps([layouts, sorted(data.fields)]).encode())
  for array in (data.tokens, data.loss, data.piece_start, data.group_start):
    sha.update(np.ascontiguousarray(array))
  for name in sorted(data.fields):
    sha.update(np.ascontiguousarray(data.fields[name]))
  for name in sorted(data.token_fields):
    sha.update(name.encode())
    sha.update(np.ascontiguousarray(data.token_fields[name]))
  return sha.hexdigest()


def tokens_digest(tokenizer: PreTrainedTokenizerBase) -> str:
  """Hashes what makes tokens of a rendered text, and ends it: a fast tokenizer without
  its chat template."""
  sha = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
  sha.update(json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id]).encode())
  return sha.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
  """Hashes a fast tokenizer: vocabulary, merges, special tokens, chat template."""
  sha = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
  special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
  sha.update(json.dumps(special).encode())
  return sha.hexdigest()


def inspect_tokens(
  batch: Batch, tokenizer: PreTrainedTokenizerBase, microbatch: int = 0
) -> TokenRows:
  """Lists the tokens of each row of a microbatch, without trailing padding.

  The loss mask is derived from the gather indices of the batch, not from the data, so
  that it shows what the training step uses.

  Args:
    batch: a batch of `pack.plan`.
    tokenizer: decodes the ids.
    microbatch: index into M.

  Returns:
    A list of rows, each a list of tokens; in a notebook, the rows in colours.
  """
  rows = TokenRows()
  for row in range(batch.tokens_MRL.shape[1]):
    tokens, segment, branch, position = (
      array[microbatch, row]
      for array in (
        batch.tokens_MRL,
        batch.segment_MRL,
        batch.branch_MRL,
        batch.position_MRL,
      )
    )
    valid = batch.valid_MRC[microbatch, row] > 0
    source = batch.source_MRC[microbatch, row][valid]
    loss = np.zeros(len(tokens), bool)
    loss[_targets(source, segment, branch)] = True
    used = np.count_nonzero(segment)
    rows.append(
      [
        TokenInfo(tokenizer.decode([token]), int(s), int(b), int(p), bool(on))
        for token, s, b, p, on in zip(
          tokens[:used], segment, branch, position, loss, strict=False
        )
      ]
    )
  return rows


def _targets(source, segment, branch) -> list[int]:
  """Returns the column of the token that each source predicts, in row order."""
  first = np.flatnonzero((np.diff(branch, prepend=0) != 0) & (branch > 0))
  targets = []
  last = -1
  for at in source:
    if branch[at] == 0:  # the end of a prompt predicts the start of each completion
      last = next(i for i in first if i > last and segment[i] == segment[at])
    else:
      last = at + 1
    targets.append(int(last))
  return targets
