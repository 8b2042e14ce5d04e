"""Rows as well-known data sets have them become the records that they mean."""

import pytest

from xpo_jax.data import records, sources
from xpo_jax.data.formats import schemas
from xpo_jax.data.records import Pair, Prompt, Turn
from xpo_jax.data.sources import Reading

UID = "here:1"
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant:"


def _chat(*contents):
  roles = ("user", "assistant")
  return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def _turns(*contents):
  """Turns of user and assistant in turn."""
  roles = ("user", "assistant")
  return tuple(Turn(roles[i % 2], text) for i, text in enumerate(contents))


def _said(text):
  return (Turn("assistant", text, loss=True),)


ROWS = {
  # The six of TRL.
  "language modeling": (
    {"messages": _chat("a", "b")},
    records.Demonstration(UID, _turns("a"), _said("b")),
  ),
  "prompt-only": ({"prompt": _chat("a")}, records.Prompt(UID, _turns("a"))),
  "prompt-completion": (
    {"prompt": _chat("a"), "completion": _chat("a", "b")[1:]},
    records.Demonstration(UID, _turns("a"), _said("b")),
  ),
  "preference": (
    {
      "prompt": _chat("a"),
      "chosen": _chat("", "b")[1:],
      "rejected": _chat("", "c")[1:],
    },
    records.Pair(UID, _turns("a"), _said("b"), _said("c")),
  ),
  "unpaired preference": (  # KTO
    {"prompt": _chat("a"), "completion": _chat("", "b")[1:], "label": False},
    records.Rated(UID, _turns("a"), _said("b"), desirable=False),
  ),
  "stepwise supervision": (
    {"prompt": "p", "completions": ["one", "two"], "labels": [True, False]},
    records.Stepped(UID, "p", ("one", "two"), (1.0, -1.0)),
  ),
  "UltraFeedback binarized": (
    {
      "prompt": "a",
      "prompt_id": "7",
      "chosen": _chat("a", "b"),
      "rejected": _chat("a", "c"),
      "messages": _chat("a", "b"),
      "score_chosen": 8.5,
      "score_rejected": 7.0,
    },
    records.Pair(UID, _turns("a"), _said("b"), _said("c")),
  ),
  "string before answers of the assistant": (
    {"prompt": "a", "chosen": _chat("", "b")[1:], "rejected": _chat("", "c")[1:]},
    records.Pair(UID, _turns("a"), _said("b"), _said("c")),
  ),
  "string after a message of the system": (
    {
      "prompt": "a",
      "chosen": [{"role": "system", "content": "s"}, *_chat("a", "b")],
      "rejected": [{"role": "system", "content": "s"}, *_chat("a", "c")],
    },
    records.Pair(UID, (Turn("system", "s"), *_turns("a")), _said("b"), _said("c")),
  ),
  "completions with the prompt's messages": (
    {"prompt": _chat("a"), "completion": _chat("a", "b"), "label": True},
    records.Rated(UID, _turns("a"), _said("b"), desirable=True),
  ),
  "HH": (
    {"chosen": f"{HH} fine", "rejected": f"{HH} bad"},
    records.Pair(UID, HH, " fine", " bad"),
  ),
  "SHP": (
    {
      "history": "p",
      "human_ref_A": "first",
      "human_ref_B": "second",
      "labels": 0,
      "score_A": 3,
      "score_B": 9,
    },
    records.Pair(UID, "p", "second", "first"),
  ),
  "SafeRLHF": (
    {"prompt": "p", "response_0": "x", "response_1": "y", "better_response_id": 1},
    records.Pair(UID, "p", "y", "x"),
  ),
  "Orca pairs": (
    {"system": "s", "question": "a", "chosen": "b", "rejected": "c"},
    records.Pair(UID, (Turn("system", "s"), *_turns("a")), _said("b"), _said("c")),
  ),
  "HelpSteer": (
    {"prompt": "p", "response": "x", "helpfulness": 3, "verbosity": 1},
    records.Rated(UID, "p", "x", reward=3.0),
  ),
  "Nectar": (
    {
      "prompt": "p",
      "answers": [{"answer": "x", "rank": 2.0}, {"answer": "y", "rank": 1.0}],
    },
    records.Ranked(UID, "p", ("x", "y"), (-2.0, -1.0)),
  ),
  "UltraFeedback": (
    {
      "instruction": "p",
      "completions": [
        {"response": "x", "overall_score": 7.5, "model": "m"},
        {"response": "y", "overall_score": 4.0, "model": "n"},
      ],
    },
    records.Ranked(UID, "p", ("x", "y"), (7.5, 4.0)),
  ),
  "Alpaca": (
    {"instruction": "do", "input": "this", "output": "done"},
    records.Demonstration(UID, "do\n\nthis", "done"),
  ),
  "Capybara": (
    {"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
    records.Demonstration(UID, _turns("a", "b", "c"), _said("d")),
  ),
  "ShareGPT": (
    {
      "conversations": [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"},
      ]
    },
    records.Demonstration(UID, _turns("a"), _said("b")),
  ),
  "prompt with an answer": (
    {"prompt": "1 + 1", "answer": "2"},
    records.Prompt(UID, "1 + 1"),
  ),
  "tool calling": (
    {
      "messages": [
        *_chat("a"),
        {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
      ],
      "tools": [{"type": "function"}],
    },
    records.Demonstration(
      UID,
      _turns("a"),
      (
        Turn(
          "assistant", None, True, other={"tool_calls": [{"function": {"name": "f"}}]}
        ),
      ),
      template_arguments={"tools": [{"type": "function"}]},
    ),
  ),
}


@pytest.mark.parametrize("name", ROWS)
def test_row_is_read_as_what_it_means(name):
  row, record = ROWS[name]
  loaded = sources.from_dicts([row], "here")
  assert loaded.bad == () and loaded.records == (record,)
  known = {schema.name for schema in schemas._SCHEMAS}
  assert (f"columns of {name}" in loaded.name) == (name in known)


def test_every_schema_has_a_row():
  assert {schema.name for schema in schemas._SCHEMAS} <= set(ROWS)


def test_columns_that_a_schema_does_not_read_are_reported():
  row, _ = ROWS["HelpSteer"]
  assert sources.from_dicts([row], "here").unused == {"verbosity": 1}


@pytest.mark.parametrize(
  ("row", "problem"),
  [
    (ROWS["SHP"][0] | {"labels": 2}, "not a label"),
    (ROWS["SHP"][0] | {"human_ref_A": None}, "missing column"),
    (ROWS["SafeRLHF"][0] | {"better_response_id": "1"}, "not a label"),
    (ROWS["UltraFeedback"][0] | {"completions": [{"text": "x"}]}, "not of its schema"),
    ({"conversations": [{"from": "alien", "value": "a"}]}, "not a message"),
    ({"conversation": [{"input": 3, "output": "b"}]}, "not a message"),
  ],
)
def test_row_of_another_form_is_bad(row, problem):
  good = {name: value for name, value in row.items() if name != "id"}
  loaded = sources.from_dicts([good], "here")
  assert [bad.problem for bad in loaded.bad] == [problem]


@pytest.mark.parametrize("first", [True, False])
def test_row_that_is_no_object_is_bad_beside_those_of_a_schema(first):
  good = ROWS["SafeRLHF"][0]
  loaded = sources.from_dicts([[1], good] if first else [good, [1]], "here")
  assert len(loaded.records) == 1
  assert [bad.problem for bad in loaded.bad] == ["not a JSON object"]


def test_explicit_kind_and_rename_come_before_schemas():
  row, _ = ROWS["Nectar"]
  (record,) = sources.from_dicts([row], "here", Reading(kind="prompt")).records
  assert record == records.Prompt(UID, "p")
  row, _ = ROWS["Alpaca"]
  reading = Reading(rename={"instruction": "prompt", "output": "completion"})
  (record,) = sources.from_dicts([row], "here", reading).records
  assert record == records.Demonstration(UID, "do", "done")


@pytest.mark.parametrize(
  ("row", "reading", "record"),
  [
    ({"prompt": "2+2", "answers": ["4"]}, Reading(), Prompt),
    ({"prompt": "2+2", "answers": ["4"]}, Reading(columns=("answers",)), Prompt),
    (
      {"prompt": "p", "chosen": " a", "rejected": " b", "conversation": "id7"},
      Reading(),
      Pair,
    ),
  ],
)
def test_columns_of_a_record_come_before_those_of_a_schema(row, reading, record):
  loaded = sources.from_dicts([row], "rows", reading)
  assert [type(one) for one in loaded.records] == [record] and not loaded.bad


def test_transcripts_become_messages():
  row, _ = ROWS["HH"]
  reading = Reading(transcripts="messages")
  (record,) = sources.from_dicts([row], "here", reading).records
  asked = _turns("hi", "hello", "and?")
  assert record == records.Pair(UID, asked, _said("fine"), _said("bad"))
  (prompt,) = sources.from_dicts([{"prompt": HH}], "here", reading).records
  assert prompt == records.Prompt(UID, asked)
  plain = {"prompt": "the Human: word", "completion": "x"}
  assert sources.from_dicts([plain], "here", reading).records[0].prompt == (
    "the Human: word"
  )


def test_columns_stay_with_prompts_where_they_are_asked_for():
  rows = [
    {"prompt": "1 + 1", "answer": "2"},
    {"prompt": "1 + 2", "anser": "3"},
  ]
  loaded = sources.from_dicts(rows, "here", Reading(columns=("answer",)))
  (record,) = loaded.records
  assert record.columns == {"answer": "2"} and loaded.unused == {}
  assert "did you mean 'anser'" in loaded.bad[0].detail


def test_names_that_mean_a_column_are_suggested():
  expected = "--data.reading.rename answer=completion question=prompt"
  with pytest.raises(ValueError, match=expected):
    sources.from_dicts([{"question": "q", "answer": "a"}], "here")
  with pytest.raises(ValueError, match="rename choosen=chosen"):
    sources.from_dicts([{"prompt": "q", "choosen": "a", "rejected": "b"}], "here")
