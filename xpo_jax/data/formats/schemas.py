"""Reads the columns of well-known data sets as those of records.

| schema | columns | record |
|---|---|---|
| SHP | `history`, `human_ref_A`, `human_ref_B`, `labels` (1: A is preferred) | pair |
| SafeRLHF | `prompt`, `response_0`, `response_1`, `better_response_id` | pair |
| Orca pairs | `system`, `question`, `chosen`, `rejected` | pair of messages |
| Nectar | `prompt`, `answers` of `answer` and `rank` | list, rewards -rank |
| UltraFeedback | `instruction`, `completions` of `response`, `overall_score` | list |
| HelpSteer | `prompt`, `response`, `helpfulness` | completion with that reward |
| Alpaca | `instruction`, `output`, perhaps `input` | demonstration |
| Capybara | `conversation` of `input` and `output` | messages |
| ShareGPT | `conversations` of `from` and `value` | messages |

UltraFeedback binarized, HH and KTO need none: `sources` reads them as they are.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from xpo_jax.data.records import UnusableRecord

Row = Mapping[str, Any]
_ROLES = {
  "system": "system",
  "human": "user",
  "user": "user",
  "gpt": "assistant",
  "assistant": "assistant",
  "chatgpt": "assistant",
  "tool": "tool",
}
_OTHER_FORM = "not of its schema"
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class Schema(NamedTuple):
  """The columns of a data set.

  Attributes:
    name: for display.
    columns: by which it is recognised; all of them.
    read: row -> the columns of a record (`sources`), instead of its own.
    gives: those columns.
    optional: further columns that it reads.
  """

  name: str
  columns: frozenset[str]
  read: Callable[[Row], dict[str, Any]]
  gives: frozenset[str]
  optional: frozenset[str] = frozenset()

  def fits(self, row: Row) -> bool:
    """Whether a row has the form of the schema's rows."""
    try:
      self.convert(row)
    except UnusableRecord as error:
      return error.problem != _OTHER_FORM
    return True

  def convert(self, row: Row) -> dict[str, Any]:
    """A row with the columns of a record; those that the schema lacks stay.

    Raises:
      UnusableRecord: a missing value, or one of another form.
    """
    for column in sorted(self.columns):
      if row.get(column) is None:
        raise UnusableRecord(
          "missing column",
          f"{column!r} is not among {sorted(row)}; {self.name} needs "
          f"{sorted(self.columns)}",
        )
    try:
      read = self.read(row)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
      raise UnusableRecord(
        _OTHER_FORM,
        f"read as {self.name}'s columns: {type(error).__name__}: {error}; rename the "
        "columns (rename) if they mean something else",
      ) from error
    own = self.columns | self.optional
    return {name: value for name, value in row.items() if name not in own} | read


def find(columns: Iterable[str]) -> Schema | None:
  """The schema with these columns, or None."""
  names = set(columns)
  return next((schema for schema in _SCHEMAS if schema.columns <= names), None)


def turns(text: str) -> list[dict[str, str]] | str:
  """The messages of a transcript of "\\n\\nHuman:" and "\\n\\nAssistant:"; another text
  as it is. An empty last turn, where a prompt asks for one, is left out."""
  parts = _TRANSCRIPT.split(text)
  if len(parts) < 3 or parts[0].strip():
    return text
  roles = {"Human": "user", "Assistant": "assistant"}
  pairs = zip(parts[1::2], parts[2::2], strict=True)
  messages = [{"role": roles[who], "content": said.strip()} for who, said in pairs]
  if messages[-1] == {"role": "assistant", "content": ""}:
    messages.pop()
  return messages


def _shp(row: Row) -> dict[str, Any]:
  first, second = row["human_ref_A"], row["human_ref_B"]
  if row["labels"] not in (0, 1):
    raise UnusableRecord(
      "not a label", f"labels is {row['labels']!r}; SHP has 1 for A and 0 for B"
    )
  chosen, rejected = (first, second) if row["labels"] else (second, first)
  return {"prompt": row["history"], "chosen": chosen, "rejected": rejected}


def _safe_rlhf(row: Row) -> dict[str, Any]:
  better = row["better_response_id"]
  if better not in (0, 1):
    raise UnusableRecord(
      "not a label", f"better_response_id is {better!r}; it must be 0 or 1"
    )
  texts = [row["response_0"], row["response_1"]]
  chosen, rejected = texts[better], texts[1 - better]
  return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def _orca(row: Row) -> dict[str, Any]:
  prompt = [_message("user", row["question"])]
  if row["system"]:
    prompt.insert(0, _message("system", row["system"]))
  texts = {name: [_message("assistant", row[name])] for name in ("chosen", "rejected")}
  return {"prompt": prompt, **texts}


def _nectar(row: Row) -> dict[str, Any]:
  answers = row["answers"]
  return {
    "prompt": row["prompt"],
    "completions": [one["answer"] for one in answers],
    "rewards": [-one["rank"] for one in answers],
  }


def _ultrafeedback(row: Row) -> dict[str, Any]:
  answers = row["completions"]
  return {
    "prompt": row["instruction"],
    "completions": [one["response"] for one in answers],
    "rewards": [one["overall_score"] for one in answers],
  }


def _helpsteer(row: Row) -> dict[str, Any]:
  return {
    "prompt": row["prompt"],
    "completion": row["response"],
    "reward": row["helpfulness"],
  }


def _alpaca(row: Row) -> dict[str, Any]:
  further = row.get("input") or ""
  prompt = "\n\n".join(filter(None, (row["instruction"], further)))
  return {"prompt": prompt, "completion": row["output"]}


def _capybara(row: Row) -> dict[str, Any]:
  messages = []
  for turn in row["conversation"]:
    messages.append(_message("user", turn["input"]))
    messages.append(_message("assistant", turn["output"]))
  return {"messages": messages}


def _sharegpt(row: Row) -> dict[str, Any]:
  messages = [
    _message(_role(turn["from"]), turn["value"]) for turn in row["conversations"]
  ]
  return {"messages": messages}


def _role(name: str) -> str:
  if name not in _ROLES:
    raise UnusableRecord(
      "not a message", f"from is {name!r}; known: {', '.join(_ROLES)}"
    )
  return _ROLES[name]


def _message(role: str, content: Any) -> dict[str, Any]:
  return {"role": role, "content": content}


_PAIR = frozenset({"prompt", "chosen", "rejected"})
_RANKED = frozenset({"prompt", "completions", "rewards"})
_RATED = frozenset({"prompt", "completion", "reward"})
_DEMONSTRATION = frozenset({"prompt", "completion"})
_MESSAGES = frozenset({"messages"})


def _schema(
  name: str,
  columns: str,
  read: Callable[[Row], dict[str, Any]],
  gives: frozenset[str],
  optional: str = "",
) -> Schema:
  return Schema(
    name, frozenset(columns.split()), read, gives, frozenset(optional.split())
  )


_SCHEMAS = (
  _schema("SHP", "history human_ref_A human_ref_B labels", _shp, _PAIR),
  _schema(
    "SafeRLHF", "prompt response_0 response_1 better_response_id", _safe_rlhf, _PAIR
  ),
  _schema("Orca pairs", "system question chosen rejected", _orca, _PAIR),
  _schema("Nectar", "prompt answers", _nectar, _RANKED),
  _schema("UltraFeedback", "instruction completions", _ultrafeedback, _RANKED),
  _schema("HelpSteer", "prompt response helpfulness", _helpsteer, _RATED),
  _schema("Alpaca", "instruction output", _alpaca, _DEMONSTRATION, "input"),
  _schema("Capybara", "conversation", _capybara, _MESSAGES),
  _schema("ShareGPT", "conversations", _sharegpt, _MESSAGES),
)
