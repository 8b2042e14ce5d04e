"""Rows as well-known data sets have them become the records that they mean."""

import re

import pytest

from tests import guides
from xpo_jax import objectives
from xpo_jax.data import records, sources
from xpo_jax.data.formats import schemas
from xpo_jax.data.records import Pair, Prompt, Turn
from xpo_jax.data.sources import Reading
from xpo_jax.types import Layout

UID = "here:1"
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant:"
_CALL = {"function": {"name": "cast", "arguments": {"film": "it"}}}
_TOOL = {"type": "function", "function": {"name": "cast"}}


def _chat(*contents):
  roles = ("user", "assistant")
  return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def _turns(*contents):
  """Turns of user and assistant in turn."""
  roles = ("user", "assistant")
  return tuple(Turn(roles[i % 2], text) for i, text in enumerate(contents))


def _said(text):
  return (Turn("assistant", text, loss=True),)


# What the rows of the guide mean, by the name of their schema.
_PROMPT = _turns("the cast?")
_GOOD, _BAD = _said("a fine one."), _said("a poor one.")
MEANT = {
  "language modeling": records.Demonstration(UID, "the cast is", " a fine one"),
  "language modeling, conversational": records.Demonstration(UID, _PROMPT, _GOOD),
  "prompt-only": records.Prompt(UID, "the cast is"),
  "prompt-only, conversational": records.Prompt(UID, _PROMPT),
  "prompt-completion": records.Demonstration(UID, "the cast is", " fine."),
  "prompt-completion, conversational": records.Demonstration(UID, _PROMPT, _GOOD),
  "preference": records.Pair(UID, "the cast is", " fine.", " poor."),
  "preference, conversational": records.Pair(UID, _PROMPT, _GOOD, _BAD),
  "preference, implicit prompt": records.Pair(UID, "the cast is", " fine.", " poor."),
  "preference, implicit prompt, conversational": records.Pair(
    UID, _PROMPT, _GOOD, _BAD
  ),
  "unpaired preference": records.Rated(UID, "the cast is", " poor.", desirable=False),
  "unpaired preference, conversational (KTO)": records.Rated(
    UID, _PROMPT, _BAD, desirable=False
  ),
  "stepwise supervision": records.Stepped(
    UID, "2 + 2 + 1", ("2 + 2 = 4.", "4 + 1 = 6."), (1.0, -1.0)
  ),
  "reward": records.Rated(UID, "the cast is", " fine.", reward=0.5),
  "list of rewards": records.Ranked(
    UID, "the cast is", (" poor.", " fine."), (0.1, 0.9)
  ),
  "UltraFeedback binarized": records.Pair(UID, _PROMPT, _GOOD, _BAD),
  "HH": records.Pair(UID, "\n\nHuman: the cast?\n\nAssistant:", " fine.", " poor."),
  "SHP": records.Pair(UID, "the cast?", "fine.", "poor."),
  "SafeRLHF": records.Pair(UID, "the cast?", "fine.", "poor."),
  "Orca pairs": records.Pair(
    UID, (Turn("system", "Be brief."), *_PROMPT), _said("fine."), _said("poor.")
  ),
  "Nectar": records.Ranked(UID, "the cast?", ("poor.", "fine."), (-2.0, -1.0)),
  "UltraFeedback": records.Ranked(UID, "the cast?", ("fine.", "poor."), (7.5, 4.0)),
  "HelpSteer": records.Rated(UID, "the cast?", "fine.", reward=3.0),
  "Alpaca": records.Demonstration(UID, "Judge the cast.\n\na film", "fine."),
  "Capybara": records.Demonstration(
    UID, _turns("the cast?", "fine.", "the plot?"), _said("poor.")
  ),
  "ShareGPT": records.Demonstration(UID, _PROMPT, _said("fine.")),
  "prompt with an answer": records.Prompt(UID, "1 + 1"),
  "tool calling": records.Demonstration(
    UID,
    _PROMPT,
    (Turn("assistant", None, loss=True, other={"tool_calls": [_CALL]}),),
    template_arguments={"tools": [_TOOL]},
  ),
}
GUIDE = guides.data_rows("your_data")
FURTHER = {
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
  "a transcript of several turns": (
    {"chosen": f"{HH} fine", "rejected": f"{HH} bad"},
    records.Pair(UID, HH, " fine", " bad"),
  ),
}
ROWS = {name: (GUIDE[name].row, record) for name, record in MEANT.items()} | FURTHER
# The kind of a record and the objectives' layout, by how the guide calls it.
KINDS = {
  "demonstration": (records.Demonstration, {Layout.DEMO}),
  "prompt": (records.Prompt, {Layout.SAMPLED}),
  "pair": (records.Pair, {Layout.PAIR}),
  "thumb": (records.Rated, {Layout.RATED, Layout.RATED_MISMATCHED}),
  "reward": (records.Rated, {Layout.RATED}),
  "list": (records.Ranked, {Layout.RANKED}),
  "labelled steps": (records.Stepped, {Layout.RATED}),
}


@pytest.mark.parametrize("name", ROWS)
def test_row_is_read_as_what_it_means(name):
  row, record = ROWS[name]
  # Three words are the prompt, as the guide has it.
  reading = Reading(prompt_words=3 if set(row) == {"text"} else None)
  loaded = sources.from_dicts([row], "here", reading)
  assert loaded.bad == () and loaded.records == (record,)
  known = {schema.name for schema in schemas._SCHEMAS}
  assert (f"columns of {name}" in loaded.name) == (name in known)


def test_guide_has_a_row_of_every_schema_and_no_other():
  assert set(GUIDE) == set(MEANT)
  assert {schema.name for schema in schemas._SCHEMAS} <= set(GUIDE)
  assert guides.source("your_data").count("     - .. code-block::") == len(GUIDE)


@pytest.mark.parametrize("name", MEANT)
def test_objectives_that_the_guide_names_learn_from_the_row(name):
  becomes = GUIDE[name].becomes
  word = re.match("labelled steps|[a-z]+", becomes)[0]
  kind, layouts = KINDS[word]
  assert type(MEANT[name]) is kind
  named = [n for n in re.findall("``(.*?)``", becomes) if n in objectives.NAMES]
  assert named and {objectives.get(n)().layout for n in named} <= layouts
  if word in ("thumb", "reward"):
    assert (MEANT[name].desirable is None) == (word == "reward")


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
  assert record == records.Prompt(UID, "the cast?")
  row, _ = ROWS["Alpaca"]
  reading = Reading(rename={"instruction": "prompt", "output": "completion"})
  (record,) = sources.from_dicts([row], "here", reading).records
  assert record == records.Demonstration(UID, "Judge the cast.", "fine.")


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
  row, _ = ROWS["a transcript of several turns"]
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
