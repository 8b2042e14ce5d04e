"""What a run is trained on: counts, bad rows, token by token, and a hash of it all."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from xpo_jax.data import records, split, token_store, tokenise
from xpo_jax.data.pack import Batch
from xpo_jax.data.sources import Loaded
from xpo_jax.data.tokenise import Example, Limits, Template


@dataclasses.dataclass(frozen=True)
class Audit:
  """Counts of what happened to the rows of a source.

  Attributes:
    source: its name.
    source_sha256: hash of its bytes.
    rows: rows read.
    kept: rows that became examples.
    dropped: count by problem; their list is `bad`.
    truncated_prompts: prompts that lost their start.
    truncated_completions: completions that lost their end and their EOS.
    repeated_prompts: kept rows whose prompt an earlier row has.
    unused_columns: columns that nothing looks at.
    splits: per split: "examples", "prompts", "tokens", the longest "prompt_tokens"
      and "completion_tokens", and "sha256" of the examples.
    bad: the rows dropped.
  """

  source: str
  source_sha256: str
  rows: int
  kept: int
  dropped: Mapping[str, int]
  truncated_prompts: int
  truncated_completions: int
  repeated_prompts: int
  unused_columns: tuple[str, ...]
  splits: Mapping[str, Mapping[str, int | str]]
  bad: tuple[records.BadRow, ...] = ()

  def summary(self) -> dict[str, Any]:
    """Everything but the bad rows themselves, ready for JSON."""
    fields = [field.name for field in dataclasses.fields(self) if field.name != "bad"]
    return {name: vars(self)[name] for name in fields}


class Prepared(NamedTuple):
  """A source, split and tokenised; the two mappings hold the same rows.

  Attributes:
    examples: per split, in the order of the source.
    records: per split, the record of each example.
    audit: the counts.
  """

  examples: dict[str, list[Example]]
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
) -> Prepared:
  """Splits a source by prompt and tokenises it, every row accounted for.

  Args:
    loaded: the source.
    tokenizer: see `tokenise.tokenise`.
    fractions: share of the prompts per split; see `split.by_prompt`.
    template: how a record becomes text.
    limits: how long texts may be.
    seed: data seed of the split.
    bad_rows: "stop" at any bad row, or "drop" them, counted and written down.
    bad_rows_file: where to write them as JSON lines; needed to drop any.

  Returns:
    Examples and records per split, and the audit.

  Raises:
    BadRows: there are bad rows and `bad_rows` is "stop".
    ValueError: an unknown `bad_rows`, rows to drop and no file, or nothing left.
  """
  if bad_rows not in ("stop", "drop"):
    raise ValueError(f"bad_rows: {bad_rows!r} is none of ['drop', 'stop']")
  done = tokenise.attempt(loaded.records, tokenizer, template, limits)
  bad = (*loaded.bad, *done.bad)
  if bad and bad_rows == "stop":
    raise records.BadRows(bad)
  if bad and bad_rows_file is None:
    raise ValueError(f"bad_rows_file: name a file to write the {len(bad)} bad rows to")
  if bad:
    write_bad_rows(bad, bad_rows_file)
  if not done.examples:
    raise ValueError(f"{loaded.name}: none of {len(bad)} rows is good; see the file")
  dropped = set(map(id, done.dropped))
  kept = [row for row in loaded.records if id(row) not in dropped]
  both = split.by_prompt(
    list(zip(kept, done.examples, strict=True)),
    fractions,
    seed,
    prompt=lambda row: split.prompt_of(row[0]),
  )
  examples = {name: [example for _, example in rows] for name, rows in both.items()}
  return Prepared(
    examples=examples,
    records={name: [row for row, _ in rows] for name, rows in both.items()},
    audit=Audit(
      source=loaded.name,
      source_sha256=loaded.sha256,
      rows=len(loaded.records) + len(loaded.bad),
      kept=len(kept),
      dropped=dict(Counter(row.problem for row in bad)),
      truncated_prompts=done.truncated_prompts,
      truncated_completions=done.truncated_completions,
      repeated_prompts=len(kept) - len(set(map(split.prompt_of, kept))),
      unused_columns=loaded.unused,
      splits={name: _count(rows) for name, rows in examples.items()},
      bad=bad,
    ),
  )


def write_bad_rows(bad: Sequence[records.BadRow], path: str | os.PathLike) -> None:
  """Writes dropped rows as JSON lines: where, what is wrong, the row itself."""
  lines = (json.dumps(dataclasses.asdict(row), default=str) for row in bad)
  Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _count(examples: Sequence[Example]) -> dict[str, int | str]:
  completions = [len(y) for example in examples for y in example.completions]
  return {
    "examples": len(examples),
    "prompts": len({example.prompt.tobytes() for example in examples}),
    "tokens": sum(example.tokens for example in examples),
    "prompt_tokens": max(len(example.prompt) for example in examples),
    "completion_tokens": max(completions),
    "sha256": digest(examples),
  }


def digest(examples: Sequence[Example]) -> str:
  """sha256 of exactly what is trained on: tokens, masks, layouts and data columns.

  The order counts; names of rows do not. Template and truncation are in the tokens.
  """
  data = token_store.store(examples)
  layouts = [example.layout.value for example in examples]
  sha = hashlib.sha256(json.dumps([layouts, sorted(data.fields)]).encode())
  for array in (data.tokens, data.loss, data.piece_start, data.group_start):
    sha.update(np.ascontiguousarray(array).tobytes())
  for name in sorted(data.fields):
    sha.update(data.fields[name].tobytes())
  for name in sorted(data.token_fields):
    sha.update(name.encode() + data.token_fields[name].tobytes())
  return sha.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
  """sha256 of a fast tokenizer: vocabulary, merges, special tokens, chat template."""
  sha = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
  special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template]
  sha.update(json.dumps(special).encode())
  return sha.hexdigest()


class Shown(NamedTuple):
  """One token of a row as a reader wants to see it.

  Attributes:
    text: the token decoded alone.
    segment: 0 on padding, else the group in the row.
    branch: 0 on the prompt, k + 1 on completion k.
    position: position the model is told.
    loss: whether the token is a training target.
  """

  text: str
  segment: int
  branch: int
  position: int
  loss: bool


def show(
  batch: Batch, tokenizer: PreTrainedTokenizerBase, microbatch: int = 0
) -> list[list[Shown]]:
  """The rows of a microbatch token by token, trailing padding left out.

  What carries loss is read back from the indices that training gathers by, not from
  the data, so that the picture shows what happens.

  Args:
    batch: a batch of `pack.plan`.
    tokenizer: decodes the ids.
    microbatch: which of M.
  """
  rows = []
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
        Shown(tokenizer.decode([token]), int(s), int(b), int(p), bool(on))
        for token, s, b, p, on in zip(
          tokens[:used], segment, branch, position, loss, strict=False
        )
      ]
    )
  return rows


def _targets(source, segment, branch) -> list[int]:
  """Where the token stands that each source predicts; sources come in row order."""
  first = np.flatnonzero((np.diff(branch, prepend=0) != 0) & (branch > 0))
  targets, last = [], -1
  for at in source:
    if branch[at] == 0:  # the end of a prompt predicts the start of each completion
      last = next(i for i in first if i > last and segment[i] == segment[at])
    else:
      last = at + 1
    targets.append(int(last))
  return targets
