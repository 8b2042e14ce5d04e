"""What is written is whole, and no changed byte of it is read as if it were sound."""

import functools
import json
import os
import threading

import pytest

from xpo_jax.data import sealed_files

OBJECT = {"rows": 3, "names": ["a", "é\u2028"], "empty": {}}
LIST = [{"label": "a"}, {"label": "b", "mean": 0.5}]
LINES = [{"row": 0, "text": "one\u2028"}, {"row": 1, "text": "two"}, {"row": 2}]
# How a file is written and read, and what it holds.
FILES = {
  "object": (sealed_files.write_json, sealed_files.read_json, OBJECT),
  "nothing": (sealed_files.write_json, sealed_files.read_json, {}),
  "list": (sealed_files.write_json, sealed_files.read_json, LIST),
  "lines": (sealed_files.write_lines, sealed_files.read_lines, LINES),
  "line": (sealed_files.write_lines, sealed_files.read_lines, LINES[:1]),
}


@pytest.mark.parametrize("name", FILES)
def test_content_comes_back_without_its_checksum(tmp_path, name):
  write, read, content = FILES[name]
  write(tmp_path / "file", content)
  assert read(tmp_path / "file") == content
  assert "checksum" in (tmp_path / "file").read_text()
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_is_caught_and_the_file_is_named(tmp_path, name):
  write, read, content = FILES[name]
  path = tmp_path / "file"
  write(path, content)
  whole = path.read_bytes()
  for at in range(len(whole)):
    for bits in (1, 4, 0x20, 0x80, whole[at] ^ ord("\n"), whole[at] ^ ord(" ")):
      if bits:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="file"):
          read(path)


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_cut_is_caught(tmp_path, name):
  write, read, content = FILES[name]
  path = tmp_path / "file"
  write(path, content)
  whole = path.read_bytes()
  # The last line break of a single line may be missing.
  for length in range(1, len(whole.rstrip())):
    path.write_bytes(whole[:length])
    with pytest.raises(ValueError, match="file"):
      read(path)


def test_every_changed_byte_of_a_commented_text_is_caught(tmp_path):
  path = tmp_path / "config.yaml"
  sealed_files.write_commented(path, "a: 1\nb: é\n")
  assert sealed_files.read_commented(path).startswith("a: 1\nb: é\n# checksum: ")
  whole = path.read_bytes()
  for at in range(len(whole)):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"config\.yaml"):
      sealed_files.read_commented(path)


def test_every_changed_byte_of_an_appended_line_is_caught():
  whole = sealed_files.sealed_line({"step": 1, "loss": 0.1}).encode()[:-1]
  assert sealed_files.read_line(whole, "") == ({"step": 1, "loss": 0.1}, True)
  for at in range(len(whole)):
    changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    with pytest.raises(ValueError, match="metrics, line 7"):
      sealed_files.read_line(changed, "metrics, line 7")


def test_content_without_a_checksum_is_a_users_own(tmp_path):
  path = tmp_path / "file"
  path.write_text(json.dumps({"source_sha256": "ab" * 32}, indent=1))
  assert sealed_files.read_json(path) == {"source_sha256": "ab" * 32}
  path.write_text('{"a": 1}\n{"a": 2}\n')
  assert sealed_files.read_lines(path) == [{"a": 1}, {"a": 2}]
  older = f"code:\n  sha256: {'ab' * 32}\n  git: null\n"
  path.write_text(older)
  assert sealed_files.read_commented(path) == older
  assert sealed_files.read_line(b'{"a": 1}', "") == ({"a": 1}, False)


def test_checksum_is_a_field_like_the_others(tmp_path):
  path = tmp_path / "file"
  sealed_files.write_json(path, OBJECT)
  sealed = json.loads(path.read_text())
  assert path.read_text() == json.dumps(sealed, indent=1, ensure_ascii=False) + "\n"
  sealed_files.write_json(path, LIST)
  assert path.read_text() == json.dumps(json.loads(path.read_text()), indent=1) + "\n"
  sealed_files.write_json(path, [])
  assert path.read_text() == "[]\n" and sealed_files.read_json(path) == []


def test_text_that_no_encoding_holds_is_escaped(tmp_path):
  sealed_files.write_json(tmp_path / "file", {"text": "\udc80"})
  assert sealed_files.read_json(tmp_path / "file") == {"text": "\udc80"}


def test_file_is_renamed_to_its_place_when_it_is_whole(tmp_path, monkeypatch):
  path, moments = tmp_path / "file", []
  sealed_files.write_text(path, "old")

  def synchronise(handle):
    moments.append(path.read_text())

  monkeypatch.setattr(os, "fsync", synchronise)
  sealed_files.write_text(path, "new")
  assert moments == ["old", "new"]  # the file, then the directory


def _directory(path):
  path.mkdir()
  (path / "weights").write_bytes(b"123")
  (path / "inner").mkdir()
  (path / "inner" / "config").write_text("{}")


def test_damaged_directory_is_refused_with_the_file(tmp_path):
  path = tmp_path / "policy"
  sealed_files.write_directory(path, _directory)
  sealed_files.check_directory(path)
  (path / "README").write_text("a user's own: not looked at")
  sealed_files.check_directory(path)
  for name in ("weights", "inner/config", sealed_files.MANIFEST):
    whole = (path / name).read_bytes()
    for at in (0, len(whole) // 2, len(whole) - 2):
      changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
      (path / name).write_bytes(changed)
      with pytest.raises(ValueError, match=f"policy: .*{name}.*; put it back"):
        sealed_files.check_directory(path)
    (path / name).write_bytes(whole)
  (path / "weights").unlink()
  with pytest.raises(ValueError, match="weights is missing"):
    sealed_files.check_directory(path)
  (path / sealed_files.MANIFEST).unlink()
  sealed_files.check_directory(path)  # a user's own


def test_directory_is_written_whole_and_once(tmp_path):
  def torn(directory):
    directory.mkdir()
    (directory / "half").write_text("")
    raise KeyboardInterrupt

  path = tmp_path / "policy"
  with pytest.raises(KeyboardInterrupt):
    sealed_files.write_directory(path, torn)
  assert not path.exists()
  sealed_files.write_directory(path, _directory, sealed=False)
  sealed_files.write_directory(path, torn)  # is there: not written again
  assert {file.name for file in path.iterdir()} == {"weights", "inner"}
  assert [file.name for file in tmp_path.iterdir()] == ["policy"]


def test_directory_that_is_written_twice_at_once_is_written_once(tmp_path):
  path, writers = tmp_path / "cache", []

  def write(directory):
    writers.append(directory)
    second.start()
    second.join(0.2)  # waits for this one
    _directory(directory)

  other = functools.partial(sealed_files.write_directory, path, writers.append)
  second = threading.Thread(target=other)
  sealed_files.write_directory(path, write)
  second.join()
  assert len(writers) == 1 and (path / "weights").exists()


def test_directory_with_nothing_but_half_written_files_is_vacant(tmp_path):
  path = tmp_path / "study"
  assert sealed_files.is_vacant(path)
  path.mkdir()
  (path / ".study.json.half").write_text("{")
  assert sealed_files.is_vacant(path)
  (path / "study.json").write_text("{}")
  assert not sealed_files.is_vacant(path)
