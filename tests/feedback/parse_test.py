import pytest

from xpo_jax.feedback import parse

OPTIONS = ("1", "2")


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("1", 0),
    (" 2.\n", 1),
    ("(1)", 0),
    ("Answer 2", 1),
    ("**2**", 1),
    ("The first is short.\nPreferred answer: 1", 0),
    ("Preferred answer: 1? No.\n**Preferred Answer:** 2", 1),
    ("the preferred answer is answer 2, clearly", 1),
    ("Preferred answer = 2", 1),
    ("Preferred answer: 1 or 2", None),
    ("Preferred answer: 12", None),
    ("Preferred answer:", None),
    ("3", None),
    ("1 2", None),
    ("Both answers are equal.", None),
    ("I prefer 2", None),
    ("", None),
  ],
)
def test_choices_are_parsed_strictly(text, expected):
  assert parse.choice(text, OPTIONS) == expected


def test_options_may_be_words():
  assert parse.choice("Preferred answer: b", ("A", "B")) == 1
  assert parse.choice("Preferred answer: B, by far", ("A", "B")) == 1
  assert parse.choice("A good one", ("A", "B")) is None
  assert parse.choice("The preferred answer is a matter of taste.", "AB") is None


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("Score: 4", 4),
    ("Score: 4/5", 4),
    ("score is 3 out of 5.", 3),
    ("**Score:** 0", 0),
    ("Score: 2.5", 2.5),
    ("Score: 1 for style.\nIn total:\nScore: 5", 5),
    ("3", 3),
    ("4/5", 4),
    ("Score: 4/10", None),
    ("Score: 6", None),
    ("Score: -1", None),
    ("Score: 3-4", None),
    ("Score: 3 or 4", None),
    ("Score: 3 to 4", None),
    ("Score: 30", None),
    ("Score: <total>", None),
    ("It earns 4 points.", None),
    ("", None),
  ],
)
def test_scores_are_parsed_strictly(text, expected):
  assert parse.score(text, 0, 5) == expected
