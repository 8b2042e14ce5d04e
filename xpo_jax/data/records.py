"""What one line of preference data says, whatever file it came from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Turn:
  """One message of a conversation.

  Attributes:
    role: "system", "user", "assistant" or another role the chat template knows.
    content: the text.
    loss: whether its tokens are trained on; counts in completions only.
  """

  role: str
  content: str
  loss: bool = False


Text = str | tuple[Turn, ...]  # plain text, or turns for the chat template


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt to sample from."""

  uid: str
  prompt: Text


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """An answer to imitate."""

  uid: str
  prompt: Text
  completion: Text


@dataclasses.dataclass(frozen=True)
class Pair:
  """A preferred and a dispreferred answer.

  Attributes:
    probability: share of votes for the chosen one, where labels are soft.
  """

  uid: str
  prompt: Text
  chosen: Text
  rejected: Text
  probability: float | None = None


@dataclasses.dataclass(frozen=True)
class Rated:
  """One answer with a thumb (True up), a reward, or both."""

  uid: str
  prompt: Text
  completion: Text
  desirable: bool | None = None
  reward: float | None = None


@dataclasses.dataclass(frozen=True)
class Ranked:
  """Answers with a reward each; higher is better, lists may differ in length."""

  uid: str
  prompt: Text
  completions: tuple[Text, ...]
  rewards: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Stepped:
  """An answer in steps, a line each, of which each has a label.

  Attributes:
    labels: > 0 the answer is right so far, < 0 it is wrong, 0 nobody said.
  """

  uid: str
  prompt: Text
  steps: tuple[str, ...]
  labels: tuple[float, ...]


Record = Prompt | Demonstration | Pair | Rated | Ranked | Stepped


@dataclasses.dataclass(frozen=True)
class BadRow:
  """A row that cannot be used.

  Attributes:
    uid: file and line, or the row's own id.
    problem: a short name that counts are kept by ("empty completion").
    detail: what was found and how to mend it.
    row: the row as read, where there is one.
  """

  uid: str
  problem: str
  detail: str
  row: Any = None


class BadRows(ValueError):
  """Rows that stop a run; the message lists the first 20 and the count."""

  def __init__(self, bad: Sequence[BadRow]):
    self.bad = tuple(bad)
    listed = [f"  {row.uid}: {row.problem}: {row.detail}" for row in bad[:20]]
    if len(bad) > 20:
      listed.append(f"  ... and {len(bad) - 20} more")
    rows = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
    fix = 'mend them, or drop them with bad_rows="drop" (counted and written to a file)'
    super().__init__("\n".join([f"{rows}; {fix}:", *listed]))


def answers(record: Record) -> tuple[Text, ...]:
  """The completions of a record, in the order of its layout's columns."""
  match record:
    case Pair():
      return (record.chosen, record.rejected)
    case Ranked():
      return record.completions
    case Demonstration() | Rated():
      return (record.completion,)
    case Stepped():
      return ("\n".join(record.steps),)
  return ()


def text_of(text: Text) -> str:
  """The words alone, for comparing, hashing and showing."""
  if isinstance(text, str):
    return text
  return "".join(f"<{turn.role}>{turn.content}" for turn in text)


def find_problem(record: Record) -> BadRow | None:
  """The first thing that makes a record unfit for training, or None."""
  completions = [text_of(text) for text in answers(record)]
  for column, text in enumerate(answers(record)):
    words = (
      text
      if isinstance(text, str)
      else "".join(turn.content for turn in text if turn.loss)
    )
    if not words.strip():
      return BadRow(
        record.uid, "empty completion", f"completion {column} has no text to train on"
      )
  if isinstance(record, Pair) and completions[0] == completions[1]:
    shown = completions[0][:60]
    return BadRow(
      record.uid, "identical chosen and rejected", f"both are {shown!r}: no preference"
    )
  if isinstance(record, Ranked) and len(record.rewards) != len(record.completions):
    return BadRow(
      record.uid,
      "rewards do not match completions",
      f"{len(record.rewards)} rewards for {len(record.completions)} completions",
    )
  if isinstance(record, Stepped) and len(record.labels) != len(record.steps):
    return BadRow(
      record.uid,
      "labels do not match steps",
      f"{len(record.labels)} labels for {len(record.steps)} steps",
    )
  return None


def describe(record: Record) -> Mapping[str, Any]:
  """The record as plain data, for a file of dropped rows."""
  return dataclasses.asdict(record)
