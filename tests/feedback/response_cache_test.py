import json

import pytest

from xpo_jax.feedback.response_cache import ResponseCache

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "Hé \udc80?"}]}


def test_response_is_found_by_content_and_draw(tmp_path):
  cache = ResponseCache(tmp_path / "new" / "folder")
  cache.store(REQUEST, 0, {"text": "yes"})
  reopened = ResponseCache(tmp_path / "new" / "folder")
  assert reopened.find(dict(reversed(REQUEST.items())), 0) == {"text": "yes"}
  assert reopened.find(REQUEST, 1) is None
  assert reopened.find(REQUEST | {"model": "n"}, 0) is None


def test_failure_is_stored_without_a_response(tmp_path):
  cache = ResponseCache(tmp_path)
  cache.store_failure(REQUEST, 0, "slow")
  reopened = ResponseCache(tmp_path)
  assert (reopened.find(REQUEST, 0), reopened.find_failure(REQUEST, 0)) == (
    None,
    "slow",
  )
  reopened.store(REQUEST, 0, "at last")
  assert ResponseCache(tmp_path).find(REQUEST, 0) == "at last"


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_truncated_last_line_is_dropped(tmp_path, cut):
  cache = ResponseCache(tmp_path)
  cache.store(REQUEST, 0, "kept")
  cache.store(REQUEST, 1, "lost")
  text = cache.path.read_bytes()
  cache.path.write_bytes(text[:-cut])
  reopened = ResponseCache(tmp_path)
  assert (reopened.find(REQUEST, 0), reopened.find(REQUEST, 1)) == ("kept", None)
  reopened.store(REQUEST, 1, "asked again")
  lines = cache.path.read_text().splitlines()
  assert [json.loads(line)["answer"] for line in lines] == ["kept", "asked again"]
  assert ResponseCache(tmp_path).find(REQUEST, 1) == "asked again"


def test_damaged_line_raises_with_its_number(tmp_path):
  cache = ResponseCache(tmp_path)
  cache.store(REQUEST, 0, "kept")
  cache.path.write_bytes(cache.path.read_bytes() + b"rubbish\n")
  with pytest.raises(ValueError, match=r"line 2 is not JSON.* or delete the line"):
    ResponseCache(tmp_path)


def test_every_changed_byte_is_refused_with_its_line_or_asked_again(tmp_path):
  cache = ResponseCache(tmp_path)
  for draw in range(2):
    cache.store(REQUEST, draw, f"answer {draw}")
  whole, said = cache.path.read_bytes(), []
  for at in range(len(whole)):
    changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    cache.path.write_bytes(changed)
    if at == len(whole) - 1:  # no line break: the line is that of a killed writer
      assert ResponseCache(tmp_path, said.append).find(REQUEST, 1) is None
    else:
      with pytest.raises(ValueError, match=r"exchanges\.jsonl, line [12]"):
        ResponseCache(tmp_path)
  assert len(said) == 1 and "line 2 was incomplete" in said[0]


def test_line_that_is_no_exchange_is_refused(tmp_path):
  (tmp_path / "exchanges.jsonl").write_text('{"key": "a"}\n')
  with pytest.raises(ValueError, match="line 1 is not an exchange"):
    ResponseCache(tmp_path)


def test_line_of_a_killed_writer_is_cut_before_the_next_and_said(tmp_path):
  said = []
  cache = ResponseCache(tmp_path, said.append)
  cache.store(REQUEST, 0, "kept")
  with cache.path.open("ab") as file:  # another process, killed
    file.write(b'{"key": "ab')
  cache.store(REQUEST, 1, "stored")
  assert len(said) == 1 and "line 2 was incomplete and is removed" in said[0]
  reopened = ResponseCache(tmp_path)
  assert [reopened.find(REQUEST, draw) for draw in (0, 1)] == ["kept", "stored"]
