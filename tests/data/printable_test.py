"""What a terminal would act on is shown instead."""

from xpo_jax.data.printable import printable


def test_controls_and_marks_of_direction_are_escaped():
  assert printable("\x1b]0;title\x07") == "\\x1b]0;title\\x07"
  assert printable("\u202eabc\x9b") == "\\u202eabc\\x9b"


def test_other_text_stays_itself():
  text = "a\tb\nc \u00e9 \u4e2d \U0001f469\u200d\U0001f52c"
  assert printable(text) == text
