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
  with pytest.raises(ValueError, match="line 2 is not an exchange"):
    ResponseCache(tmp_path)
