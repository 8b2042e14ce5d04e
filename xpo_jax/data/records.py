"""Defines the record types of preference data, independent of any file format."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Turn:
  """One message of a conversation.

  Attributes:
    role: "system", "user", "assistant" or another role of the chat template.
    content: the text; None where the message has only `other`, as a call of a tool.
    loss: whether its tokens carry loss; read in completions only.
    other: what else the message holds for the chat template, by key: "tool_calls",
      "reasoning_content", "name".
  """

  role: str
  content: str | None
  loss: bool = False
  other: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


Text = str | tuple[Turn, ...]  # plain text, or turns for the chat template


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
  """What every record may have.

  Attributes:
    template_arguments: of the chat template beside the messages, by name: "tools",
      "documents", "enable_thinking".
  """

  template_arguments: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, hash=False
  )


@dataclasses.dataclass(frozen=True)
class Prompt(_Row):
  """A prompt to sample from.

  Attributes:
    columns: other columns of its row, by name, for a reward that reads them.
  """

  uid: str
  prompt: Text
  columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class Demonstration(_Row):
  """A completion to imitate."""

  uid: str
  prompt: Text
  completion: Text


@dataclasses.dataclass(frozen=True)
class Pair(_Row):
  """A preferred and a dispreferred completion.

  Attributes:
    probability: probability that the chosen one is preferred, where labels are soft.
    margin: by how much the chosen one is to be ahead, >= 0, in units of the reward
      (Llama 2).
  """

  uid: str
  prompt: Text
  chosen: Text
  rejected: Text
  probability: float | None = None
  margin: float | None = None


@dataclasses.dataclass(frozen=True)
class Rated(_Row):
  """One completion with a binary label (True: desirable), a reward, or both."""

  uid: str
  prompt: Text
  completion: Text
  desirable: bool | None = None
  reward: float | None = None


@dataclasses.dataclass(frozen=True)
class Ranked(_Row):
  """Completions with a reward each, higher is better; any number of them."""

  uid: str
  prompt: Text
  completions: tuple[Text, ...]
  rewards: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Stepped(_Row):
  """A completion in steps, one line and one label each (process supervision).

  Attributes:
    labels: per step, > 0: correct up to here, < 0: incorrect, 0: unlabelled.
  """

  uid: str
  prompt: Text
  steps: tuple[str, ...]
  labels: tuple[float, ...]


Record = Prompt | Demonstration | Pair | Rated | Ranked | Stepped


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A record that cannot be used.

  Attributes:
    uid: file and line, or the record's own id.
    problem: a short name, by which problems are counted ("empty completion").
    detail: the value that was read and how to fix it.
    row: the JSON row as read, if it was parsed.
  """

  uid: str
  problem: str
  detail: str
  row: Any = None


class UnusableRecord(Exception):
  """Raised where one record cannot be used; becomes a `BadRecord`."""

  def __init__(self, problem: str, detail: str):
    super().__init__(f"{problem}: {detail}")
    self.problem = problem
    self.detail = detail


class BadRecords(ValueError):
  """Raised where bad records stop a run; lists the first 20 and the count."""

  def __init__(self, bad: Sequence[BadRecord]):
    self.bad = tuple(bad)
    listed = [f"  {one.uid}: {one.problem}: {one.detail}" for one in bad[:20]]
    if len(bad) > 20:
      listed.append(f"  ... and {len(bad) - 20} more")
    count = "1 bad record" if len(bad) == 1 else f"{len(bad)} bad records"
    fix = 'fix them, or drop them with bad_rows="drop" (counted and written to a file)'
    super().__init__("\n".join([f"{count}; {fix}:", *listed]))


class Cut(str):
  """A completion that was cut at a limit of tokens: a string that no EOS ends.

  Equal to the string; what tokenises it (`feedback.tokenised_texts`) adds no EOS, so
  that a reward model can tell it from a completion that ended.
  """


def is_cut(text: Text) -> bool:
  """Whether a completion, or the last message of one, was cut."""
  return isinstance(text if isinstance(text, str) else text[-1].content, Cut)


class Conversation(str):
  """Messages as a string, for feedback: "role: content", a blank line between messages.

  What else a message holds stands on a line of its own, and what the template gets at
  the end, as JSON: strings are equal where conversations are. A reward model reads the
  messages, and renders them as in its training.

  Attributes:
    turns: the messages.
    template_arguments: of the chat template; see `Prompt`.
    columns: see `Prompt`.
  """

  turns: tuple[Turn, ...]
  template_arguments: Mapping[str, Any]
  columns: Mapping[str, Any]

  def __new__(
    cls,
    turns: tuple[Turn, ...],
    template_arguments: Mapping[str, Any] | None = None,
    columns: Mapping[str, Any] | None = None,
  ) -> "Conversation":
    """Makes the string; see the attributes."""
    parts = [
      "\n".join((f"{turn.role}: {turn.content or ''}", *_json(turn.other)))
      for turn in turns
    ]
    self = super().__new__(cls, "\n\n".join((*parts, *_json(template_arguments))))
    self.turns, self.template_arguments = turns, template_arguments or {}
    self.columns = columns or {}
    return self

  def __getnewargs__(self):
    return (self.turns, self.template_arguments, self.columns)


class PromptText(str):
  """A prompt that is plain text, with columns of its row, for feedback.

  Attributes:
    columns: see `Prompt`.
  """

  columns: Mapping[str, Any]

  def __new__(cls, text: str, columns: Mapping[str, Any]) -> "PromptText":
    """Makes the string; see the attributes."""
    self = super().__new__(cls, text)
    self.columns = columns
    return self

  def __getnewargs__(self):
    return (str(self), self.columns)


def columns_of(prompt: str) -> Mapping[str, Any]:
  """The columns that a prompt for feedback comes with."""
  if isinstance(prompt, Conversation | PromptText):
    return prompt.columns
  return {}


def _json(more: Mapping[str, Any] | None) -> list[str]:
  return [json.dumps(more, sort_keys=True, ensure_ascii=False)] if more else []


def prompt_string(record: Record) -> str:
  """The prompt of a record for feedback, with the columns of a `Prompt`; of messages a
  `Conversation`."""
  columns = record.columns if isinstance(record, Prompt) else {}
  if not isinstance(record.prompt, str):
    return Conversation(record.prompt, record.template_arguments, columns)
  return PromptText(record.prompt, columns) if columns else record.prompt


def with_messages(record: Record) -> Record:
  """A record with the messages of a prompt that is a `Conversation`; completions that
  are strings become turns of the assistant. Other records are unchanged."""
  prompt = record.prompt
  if not isinstance(prompt, Conversation):
    return record

  def turns(text: Text) -> Text:
    if isinstance(text, Conversation):
      return text.turns
    return (Turn("assistant", text, loss=True),) if isinstance(text, str) else text

  changes: dict[str, Any] = {
    name: turns(vars(record)[name])
    for name in ("completion", "chosen", "rejected")
    if name in vars(record)
  }
  if isinstance(record, Ranked):
    changes["completions"] = tuple(map(turns, record.completions))
  return dataclasses.replace(
    record,
    prompt=prompt.turns,
    template_arguments=prompt.template_arguments,
    **changes,
  )


def completion_string(text: Text) -> str:
  """A completion for feedback: of one turn its content, of more a `Conversation`."""
  if isinstance(text, str):
    return text
  if len(text) == 1 and not text[0].other:
    return text[0].content or ""
  return Conversation(text)


def completions(record: Record) -> tuple[Text, ...]:
  """Returns the completions of a record, in the order of its layout's columns."""
  match record:
    case Pair():
      return (record.chosen, record.rejected)
    case Ranked():
      return record.completions
    case Demonstration() | Rated():
      return (record.completion,)
    case Stepped():
      return ("\n".join(record.steps),) if record.steps else ()
  return ()


def plain_text(text: Text) -> str:
  """Returns a text or conversation as one string, for comparing and hashing."""
  if isinstance(text, str):
    return text
  return "".join(
    f"<{turn.role}>{turn.content or ''}" + "".join(_json(turn.other)) for turn in text
  )


def find_problem(record: Record) -> BadRecord | None:
  """Returns the first problem that excludes a record from training, or None."""
  texts = completions(record)
  if record.prompt == ():
    return BadRecord(
      record.uid, "empty prompt", "the prompt has no messages; give at least one"
    )
  if isinstance(record, Ranked | Stepped) and not texts:
    return BadRecord(record.uid, "empty completion", "there are no completions")
  for column, text in enumerate(texts):
    if isinstance(text, str) != isinstance(record.prompt, str):
      forms = ("a string", "messages")
      one, other = forms if isinstance(text, str) else reversed(forms)
      return BadRecord(
        record.uid,
        "text and messages",
        f"completion {column} is {one}, the prompt is {other}; give both as strings, "
        "or both as messages",
      )
    trained = (
      text.strip()
      if isinstance(text, str)
      else [
        one for one in text if one.loss and ((one.content or "").strip() or one.other)
      ]
    )
    if not trained:
      return BadRecord(
        record.uid, "empty completion", f"completion {column} has no text to train on"
      )
  if isinstance(record, Pair) and plain_text(texts[0]) == plain_text(texts[1]):
    shown = plain_text(texts[0])[:60]
    return BadRecord(
      record.uid, "identical chosen and rejected", f"both are {shown!r}: no preference"
    )
  if isinstance(record, Pair) and record.margin is not None:
    if not 0 <= record.margin < math.inf:
      return BadRecord(
        record.uid,
        "not a margin",
        f"margin is {record.margin}; it must be finite and at least 0, as the chosen "
        "completion is the better one",
      )
  if isinstance(record, Ranked) and len(record.rewards) != len(record.completions):
    return BadRecord(
      record.uid,
      "rewards do not match completions",
      f"{len(record.rewards)} rewards for {len(record.completions)} completions",
    )
  if isinstance(record, Stepped) and len(record.labels) != len(record.steps):
    return BadRecord(
      record.uid,
      "labels do not match steps",
      f"{len(record.labels)} labels for {len(record.steps)} steps",
    )
  return None


def as_dict(record: Record) -> Mapping[str, Any]:
  """Returns the record as plain data, for the file of dropped records."""
  return dataclasses.asdict(record)
