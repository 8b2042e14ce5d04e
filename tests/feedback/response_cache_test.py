import json

import pytest

from xpo_jax.feedback.response_cache import Exchanges

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hé \udc80?"}]}


def test_an_answer_is_found_by_content_and_draw(tmp_path):
  held = Exchanges(tmp_path / "new" / "folder")
  held.keep(ASK, 0, {"text": "yes"})
  again = Exchanges(tmp_path / "new" / "folder")
  assert again.find(dict(reversed(ASK.items())), 0) == {"text": "yes"}
  assert again.find(ASK, 1) is None
  assert again.find(ASK | {"model": "n"}, 0) is None


def test_a_failure_leaves_the_question_open(tmp_path):
  held = Exchanges(tmp_path)
  held.keep_failure(ASK, 0, "slow")
  again = Exchanges(tmp_path)
  assert (again.find(ASK, 0), again.find_failure(ASK, 0)) == (None, "slow")
  again.keep(ASK, 0, "at last")
  assert Exchanges(tmp_path).find(ASK, 0) == "at last"


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_cut_by_a_kill_is_dropped(tmp_path, cut):
  held = Exchanges(tmp_path)
  held.keep(ASK, 0, "kept")
  held.keep(ASK, 1, "lost")
  text = held.path.read_bytes()
  held.path.write_bytes(text[:-cut])
  again = Exchanges(tmp_path)
  assert (again.find(ASK, 0), again.find(ASK, 1)) == ("kept", None)
  again.keep(ASK, 1, "asked again")
  lines = held.path.read_text().splitlines()
  assert [json.loads(line)["answer"] for line in lines] == ["kept", "asked again"]
  assert Exchanges(tmp_path).find(ASK, 1) == "asked again"


def test_a_damaged_line_is_named(tmp_path):
  held = Exchanges(tmp_path)
  held.keep(ASK, 0, "kept")
  held.path.write_bytes(held.path.read_bytes() + b"rubbish\n")
  with pytest.raises(ValueError, match="line 2 is not an exchange"):
    Exchanges(tmp_path)
