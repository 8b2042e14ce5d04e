import gzip
import hashlib
import json
import math

import pytest

from xpo_jax.data import records, sources
from xpo_jax.data.records import Turn
from xpo_jax.data.sources import Reading


def write(path, *rows):
  lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  return path


def read_one(row, reading=Reading()):
  loaded = sources.from_dicts([row], "here", reading)
  assert not loaded.bad, loaded.bad
  return loaded.records[0]


def messages(*contents):
  roles = ("user", "assistant")
  return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize(
  ("row", "record"),
  [
    (
      {"prompt": "sky is", "chosen": " blue", "rejected": " green"},
      records.Pair("here:1", "sky is", " blue", " green"),
    ),
    (
      {"chosen": "the sky is blue", "rejected": "the sky is black"},
      records.Pair("here:1", "the sky is", " blue", " black"),
    ),
    (
      {"chosen": "the sky is", "rejected": "the sky is black"},
      records.Pair("here:1", "the sky", " is", " is black"),
    ),
    (
      {"prompt": "p", "completion": " c", "id": "seven"},
      records.Demonstration("seven", "p", " c"),
    ),
    (
      {"prompt": "p", "completion": " c", "label": True},
      records.Rated("here:1", "p", " c", desirable=True),
    ),
    (
      {"prompt": "p", "completion": " c", "label": 0, "reward": 2},
      records.Rated("here:1", "p", " c", desirable=False, reward=2.0),
    ),
    (
      {"prompt": "p", "completion": " c", "reward": 0.5},
      records.Rated("here:1", "p", " c", reward=0.5),
    ),
    (
      {"prompt": "p", "completions": [" a", " b"], "rewards": [1, 0]},
      records.Ranked("here:1", "p", (" a", " b"), (1.0, 0.0)),
    ),
    ({"prompt": "p"}, records.Prompt("here:1", "p")),
  ],
)
def test_columns_determine_the_record(row, record):
  assert read_one(row) == record


def test_transcripts_share_the_prompt_up_to_the_last_assistant():
  start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant:"
  row = {"chosen": f"{start} fine", "rejected": f"{start} fine too"}
  assert read_one(row) == records.Pair("here:1", start, " fine", " fine too")


def test_conversations_share_their_equal_leading_messages():
  row = {
    "chosen": messages("a", "b", "c", "good"),
    "rejected": messages("a", "b", "c", "bad"),
  }
  pair = read_one(row)
  assert [turn.content for turn in pair.prompt] == ["a", "b", "c"]
  assert pair.chosen == (Turn("assistant", "good", loss=True),)
  assert pair.rejected == (Turn("assistant", "bad", loss=True),)


def test_conversation_that_is_a_prefix_keeps_a_completion():
  row = {"chosen": messages("a", "b"), "rejected": messages("a", "b", "c", "d")}
  pair = read_one(row)
  assert [turn.content for turn in pair.prompt] == ["a"]
  assert [turn.content for turn in pair.chosen] == ["b"]
  assert [turn.loss for turn in pair.rejected] == [False, False, True]


def test_loss_is_on_the_last_assistant_turn_or_on_all():
  row = {"messages": messages("a", "b", "c", "d")}
  last, every = (read_one(row, Reading(loss_on=which)) for which in ("last", "all"))
  assert [turn.content for turn in last.prompt] == ["a", "b", "c"]
  assert last.completion == (Turn("assistant", "d", loss=True),)
  assert [turn.content for turn in every.prompt] == ["a"]
  assert [turn.loss for turn in every.completion] == [True, False, True]


def test_text_prompt_is_its_first_words():
  row = {"text": "a loud , witless mess .", "label": 0}
  loaded = sources.from_dicts([row], "here", Reading(prompt_words=4))
  (record,) = loaded.records
  assert (record.prompt, record.completion) == ("a loud , witless", " mess .")
  assert loaded.unused == {"label": 1}


def test_columns_are_renamed_before_they_are_read():
  reading = Reading(rename={"question": "prompt", "answer": "completion"})
  assert read_one({"question": "p", "answer": " c"}, reading).completion == " c"


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_file_is_read_plain_or_gzipped(tmp_path, suffix):
  # A line separator inside a string must not end the row.
  row = json.dumps({"prompt": "p", "completion": " a\u2028b"}, ensure_ascii=False)
  raw = f"{row}\n\n{row}\n".encode()
  path = tmp_path / f"rows.{suffix}"
  path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
  loaded = sources.read_jsonl(path)
  assert [r.completion for r in loaded.records] == [" a\u2028b"] * 2
  assert [r.uid for r in loaded.records] == [f"{path.name}:1", f"{path.name}:3"]
  assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


HH = "\n\nHuman: {}\n\nAssistant:{}"


@pytest.mark.parametrize(
  ("row", "problem", "detail"),
  [
    ("{oops", "not JSON", "line 2"),
    ("[1]", "not a JSON object", "1"),
    ({"prompt": "p", "chosen": " a"}, "missing column", "'rejected' is not among"),
    ({"prompt": "p", "chosen": " a", "rejected": None}, "missing column", "rejected"),
    ({"prompt": "p", "chosen": " ", "rejected": " b"}, "empty completion", "0"),
    ({"prompt": "p", "chosen": " a", "rejected": ""}, "empty completion", "1"),
    ({"prompt": "p", "chosen": " a", "rejected": " a"}, "identical", "preference"),
    ({"chosen": "a b", "rejected": "a b"}, "identical", "preference"),
    ({"chosen": "one", "rejected": "two"}, "no shared prompt", "common prefix"),
    (
      {"chosen": messages("a", "b"), "rejected": messages("c", "d")},
      "no shared prompt",
      "",
    ),
    (
      {"chosen": HH.format("a", " x"), "rejected": HH.format("b", " y")},
      "no shared prompt",
      "Assistant",
    ),
    ({"prompt": "p", "chosen": 3, "rejected": " b"}, "not a text", "chosen"),
    (
      {"chosen": messages("a", "b"), "rejected": "a"},
      "text and messages",
      "the other messages",
    ),
    (
      {"prompt": "p", "chosen": messages("a", "b"), "rejected": messages("a", "c")},
      "text and messages",
      "completion 0 is messages, the prompt is a string",
    ),
    ({"prompt": [], "chosen": [], "rejected": []}, "identical", "no preference"),
    (
      {"prompt": [], "chosen": messages("a", "b"), "rejected": messages("a", "c")},
      "empty prompt",
      "no messages",
    ),
    (r'{"prompt": "a \ud800 b", "chosen": " a", "rejected": " b"}', "lone", "prompt"),
    ('{"prompt": "p", "chosen": ' + "[" * 100_000, "not JSON", "line 2"),
    ('{"prompt": ' + "1" * 5000 + "}", "not JSON", "line 2"),
    (
      {"prompt": "p", "chosen": " a", "rejected": " b", "probability": 10**400},
      "number too large",
      "probability",
    ),
    (
      {
        "prompt": [{"role": 3, "content": "p"}],
        "chosen": messages("a", "b"),
        "rejected": messages("a", "c"),
      },
      "not a message",
      "role",
    ),
    (
      {
        "prompt": [{"role": "user", "content": None}],
        "chosen": messages("a", "b"),
        "rejected": messages("a", "c"),
      },
      "not a message",
      "no content",
    ),
  ],
)
def test_bad_row_is_listed_with_its_line(tmp_path, row, problem, detail):
  good = {"prompt": "p", "chosen": " a", "rejected": " b"}
  path = write(tmp_path / "pairs.jsonl", good, row, good)
  loaded = sources.read_jsonl(path)
  (bad,) = loaded.bad
  assert bad.uid == "pairs.jsonl:2"
  assert bad.problem.startswith(problem)
  assert detail in bad.detail
  assert [record.uid for record in loaded.records] == ["pairs.jsonl:1", "pairs.jsonl:3"]


@pytest.mark.parametrize(
  ("first", "second", "problem"),
  [
    (
      {"prompt": "p", "completion": "c", "label": 1},
      {"prompt": "p", "completion": "c", "label": "yes"},
      "not a binary label",
    ),
    (
      {"prompt": "p", "completion": "c", "reward": 1},
      {"prompt": "p", "completion": "c", "reward": "high"},
      "not a number",
    ),
    (
      {"prompt": "p", "completion": "c", "reward": 1},
      {"prompt": "p", "completion": "c", "reward": float("nan")},
      "not a number",
    ),
    (
      {"prompt": "p", "completions": ["a"], "rewards": [1]},
      {"prompt": "p", "completions": ["a", "b"], "rewards": [1]},
      "rewards do not match completions",
    ),
    ({"messages": messages("a", "b")}, {"messages": messages("a")}, "empty completion"),
  ],
)
def test_bad_value_is_listed(first, second, problem):
  loaded = sources.from_dicts([first, second], "here")
  assert [(bad.uid, bad.problem) for bad in loaded.bad] == [("here:2", problem)]


def test_short_text_has_no_completion():
  rows = [{"text": "a b c"}, {"text": "a b"}, {"text": "a"}]
  loaded = sources.from_dicts(rows, "here", Reading(prompt_words=2))
  assert [bad.problem for bad in loaded.bad] == ["empty completion"] * 2


def test_bad_records_lists_twenty_and_the_count():
  bad = [records.BadRecord(f"f:{i}", "not JSON", "why") for i in range(23)]
  message = str(records.BadRecords(bad))
  assert "23 bad records" in message
  assert "f:19:" in message and "f:20:" not in message
  assert "3 more" in message


@pytest.mark.parametrize(
  ("content", "reading", "message"),
  [
    ("", Reading(), "rows.jsonl: the file is empty"),
    ("\n \n", Reading(), "the file is empty"),
    ('{"question": "q"}', Reading(), "missing column: .'question'. match no kind"),
    ('{"prompt": "p", "chosen": " a"}', Reading(), "missing column: .*'rejected'"),
    ('{"text": "a b c"}', Reading(), "how many words"),
  ],
)
def test_file_without_records_raises(tmp_path, content, reading, message):
  path = tmp_path / "rows.jsonl"
  path.write_text(content)
  with pytest.raises(ValueError, match=message):
    sources.read_jsonl(path, reading)


@pytest.mark.parametrize(
  ("row", "problem", "detail"),
  [
    ({"completions": "ab", "rewards": [1, 0]}, "not a list", "completions is a str"),
    ({"completions": [" a", " b"], "rewards": 1}, "not a list", "rewards is a int"),
    ({"completions": [], "rewards": []}, "empty completion", "no completions"),
    ({"completions": [" a"], "rewards": [1, 0]}, "rewards do not match", "2 rewards"),
    ({"completions": [" a", 3], "rewards": [1, 0]}, "not a text", "a int (3)"),
    ({"completions": [" a"], "rewards": [1e39]}, "number too large", "3.4e+38"),
    ({"completions": [" a"], "rewards": ["x"]}, "not a number", "'x'"),
  ],
)
def test_columns_of_lists_are_lists_of_what_they_should_hold(row, problem, detail):
  good = {"prompt": "p", "completions": [" b", " c"], "rewards": [1, 0]}
  loaded = sources.from_dicts([good, {"prompt": "p"} | row], "here")
  (bad,) = loaded.bad
  assert bad.uid == "here:2" and bad.problem.startswith(problem)
  assert detail in bad.detail


def test_row_without_a_number_that_others_have_is_bad():
  row = {"prompt": "p", "completion": " b", "label": True}
  loaded = sources.from_dicts([row | {"reward": 1.0}, row], "here")
  assert len(loaded.records) == 1
  assert loaded.bad[0].uid == "here:2"
  assert "other rows have 'reward'" in loaded.bad[0].detail


def test_first_row_without_a_column_is_bad():
  rows = [
    {"prompt": "p", "chosen": " a"},
    {"prompt": "p", "chosen": " a", "rejected": " b"},
  ]
  loaded = sources.from_dicts(rows, "here")
  assert [(bad.uid, bad.problem) for bad in loaded.bad] == [
    ("here:1", "missing column")
  ]
  assert len(loaded.records) == 1


def test_file_that_is_not_text_raises(tmp_path):
  for name, raw in (("a.jsonl", b"\xff\xfe"), ("b.jsonl.gz", b"plain")):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=name):
      sources.read_jsonl(tmp_path / name)


@pytest.mark.parametrize(
  "arguments", [{"kind": "pairs"}, {"loss_on": "first"}, {"prompt_words": 0}]
)
def test_invalid_reading_raises(arguments):
  (name,) = arguments
  with pytest.raises(ValueError, match=name):
    Reading(**arguments)


def test_lists_of_objects_convert_to_a_ranked_record():
  feedback = [
    {"text": " a", "p_beats_baseline": 0.1, "generator": "x"},
    {"text": " b", "p_beats_baseline": 0.7, "generator": "y"},
  ]
  reading = Reading(
    rename={
      "responses.text": "completions",
      "responses.p_beats_baseline": "rewards",
    }
  )
  rows = [
    {"prompt": "p", "source": "s", "responses": feedback},
    {"prompt": "p", "source": "s", "responses": feedback[:1]},  # ragged
    {"prompt": "p", "source": "s", "responses": [{"text": " a"}]},
    {"prompt": "p", "source": "s", "responses": "none"},
  ]
  loaded = sources.from_dicts(rows, "here", reading)
  assert loaded.records == (
    records.Ranked("here:1", "p", (" a", " b"), (0.1, 0.7)),
    records.Ranked("here:2", "p", (" a",), (0.1,)),
  )
  assert [(bad.uid, bad.problem) for bad in loaded.bad] == [
    ("here:3", "missing column"),
    ("here:4", "missing column"),
  ]
  assert loaded.unused == {"source": 2}


def test_field_of_a_list_may_replace_the_list():
  # UltraFeedback's columns.
  row = {"instruction": "p", "completions": [{"response": " a", "overall_score": 3}]}
  names = {
    "instruction": "prompt",
    "completions.response": "completions",
    "completions.overall_score": "rewards",
  }
  loaded = sources.from_dicts([row], "here", Reading(rename=names))
  assert loaded.records == (records.Ranked("here:1", "p", (" a",), (3.0,)),)


def test_probability_is_read_with_its_pair():
  pair = {"prompt": "p", "chosen": " a", "rejected": " b"}
  rows = [pair | {"probability": 0.75}, pair | {"probability": 1.5}]
  loaded = sources.from_dicts(rows, "here")
  assert loaded.records[0].probability == 0.75
  assert [bad.problem for bad in loaded.bad] == ["not a probability"]


def test_margin_is_read_with_its_pair():
  pair = {"prompt": "p", "chosen": " a", "rejected": " b"}
  margins = [3, 0, -1, math.inf, math.nan, "wide", None]
  rows = [pair | {"margin": margin} for margin in margins]
  loaded = sources.from_dicts(rows, "here")
  assert [record.margin for record in loaded.records] == [3.0, 0.0]
  assert [bad.problem for bad in loaded.bad] == [
    "not a margin",
    "number too large",
    "not a number",
    "not a number",
    "missing column",
  ]
  assert "margin is -1.0; it must be finite and at least 0" in loaded.bad[0].detail
  assert not loaded.unused


def test_labelled_steps_form_one_completion():
  rows = [
    {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
    {"prompt": "p", "completions": ["a"], "labels": [0]},
    {"prompt": "p", "completions": ["a", "b"], "labels": [True]},
    {"prompt": "p", "completions": ["a", 3], "labels": [True, True]},
  ]
  loaded = sources.from_dicts(rows, "here")
  assert loaded.records == (
    records.Stepped("here:1", "p", ("a", "b"), (1.0, -1.0)),
    records.Stepped("here:2", "p", ("a",), (0.0,)),
  )
  assert [bad.problem for bad in loaded.bad] == [
    "labels do not match steps",
    "not a text",
  ]
  assert records.completions(loaded.records[0]) == ("a\nb",)
