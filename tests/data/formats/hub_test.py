"""The hub is read through its cache: here one that is laid out as the hub's."""

import http.server
import json
import threading

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests import hub_cache
from tests.models.hf_checkpoint_test import FIXTURES
from xpo_jax.config.data import Data
from xpo_jax.data.formats import hub
from xpo_jax.models import hf_checkpoint, weights_source
from xpo_jax.train import loading

PAIR = {"prompt": "sky is", "chosen": " blue", "rejected": " red"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache, and no network."""
  return hub_cache.use(tmp_path / "hub", monkeypatch)


def _load(path, split="train"):
  return loading.load(Data(path, split=split), Data(path, split=split), {})


@pytest.mark.parametrize("revision", ["main", "v1"])
def test_model_is_read_from_the_cache(cache, revision):
  folder = hub_cache.repository(cache, "model", "org/tiny", revision)
  for file in (FIXTURES / "llama").iterdir():
    (folder / file.name).write_bytes(file.read_bytes())
  name = "hub:org/tiny" + ("" if revision == "main" else f"@{revision}")
  assert weights_source.directory(name) == folder
  there = hf_checkpoint.load(name)
  assert there.config == hf_checkpoint.load(FIXTURES / "llama").config


def test_split_is_found_by_the_names_of_files(cache):
  folder = hub_cache.repository(cache, "dataset", "org/pairs")
  hub_cache.jsonl(folder / "data" / "train-00000-of-00002.jsonl", PAIR)
  hub_cache.jsonl(folder / "data" / "train-00001-of-00002.jsonl", PAIR, PAIR)
  table = pa.Table.from_pylist([PAIR])
  pyarrow.parquet.write_table(table, folder / "data" / "test-00000-of-00001.parquet")
  loaded = _load("hub:org/pairs")
  assert len(loaded.records) == 3 and loaded.name == "org/pairs/train"
  assert len(_load("hub:org/pairs", "test").records) == 1
  with pytest.raises(ValueError, match="no split 'dev'; it has test, train"):
    _load("hub:org/pairs", "dev")


def test_a_line_that_is_no_json_is_a_bad_row_of_a_data_set(cache):
  folder = hub_cache.repository(cache, "dataset", "org/broken")
  file = folder / "data" / "train-00000-of-00001.jsonl"
  file.parent.mkdir(parents=True)
  file.write_bytes(b"\n".join([json.dumps(PAIR).encode(), b"{no", b"\xff"]))
  loaded = _load("hub:org/broken")
  assert len(loaded.records) == 1
  assert [(one.uid, one.problem) for one in loaded.bad] == [
    (f"{file.name}:2", "not JSON"),
    (f"{file.name}:3", "not UTF-8"),
  ]


def test_config_is_a_folder_where_no_card_names_it(cache):
  folder = hub_cache.repository(cache, "dataset", "org/hh")
  for number, name in enumerate(("harmless-base", "helpful-base"), 1):
    hub_cache.jsonl(folder / name / "train.jsonl", *[PAIR] * number)
  assert len(_load("hub:org/hh").records) == 3
  assert len(_load("hub:org/hh:helpful-base").records) == 2


def test_card_names_configs_and_splits(cache):
  folder = hub_cache.repository(cache, "dataset", "org/feedback", "refs-x")
  (folder / "README.md").write_text(
    "---\nconfigs:\n- config_name: first\n  data_files:\n"
    "  - split: train_prefs\n    path: data/train_prefs-*\n"
    "- config_name: second\n  data_files: other/*.jsonl\n---\n# About\n"
  )
  hub_cache.jsonl(folder / "data" / "train_prefs-0.jsonl", PAIR)
  hub_cache.jsonl(folder / "data" / "train_sft-0.jsonl", PAIR, PAIR)
  hub_cache.jsonl(folder / "other" / "a.jsonl", PAIR, PAIR, PAIR)
  loaded = _load("hub:org/feedback:first@refs-x", "train_prefs")
  assert len(loaded.records) == 1
  assert len(_load("hub:org/feedback:second@refs-x").records) == 3
  with pytest.raises(ValueError, match="has the configs first, second; name one"):
    _load("hub:org/feedback@refs-x")
  with pytest.raises(ValueError, match="no config 'third'; it has first, second"):
    _load("hub:org/feedback:third@refs-x")
  with pytest.raises(ValueError, match="no split 'train'; it has train_prefs"):
    _load("hub:org/feedback:first@refs-x")


def test_script_of_a_data_set_is_not_run(cache):
  folder = hub_cache.repository(cache, "dataset", "org/old")
  (folder / "old.py").write_text("raise SystemExit('ran')")
  with pytest.raises(ValueError, match=r"old.py is not run; .*@refs/convert/parquet"):
    _load("hub:org/old")


@pytest.mark.parametrize("read", [weights_source.directory, _load])
def test_what_is_not_in_the_cache_is_said_offline(cache, read):
  with pytest.raises(ValueError, match=r"hub:org/none is not in the cache .*OFFLINE"):
    read("hub:org/none")


@pytest.mark.parametrize("name", ["hub:", "hub:a/b/c", "hub:a b", "hub:a/b:c:d"])
def test_another_form_is_refused(name):
  with pytest.raises(ValueError, match="is no repository; write hub:ORG/NAME"):
    hub.parse(name)


def test_name_of_the_hub_without_its_prefix_is_met_with_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="repository of the hub is hub:org/tiny"):
    hf_checkpoint.load("org/tiny")


class _Refusing(http.server.BaseHTTPRequestHandler):
  """Answers as the hub does where a repository cannot be read; keeps the tokens."""

  tokens: list = []
  codes = {
    "gated": (403, "GatedRepo"),
    "none": (401, "RepoNotFound"),
    "old": (404, "RevisionNotFound"),
  }

  def do_GET(self):
    self.tokens.append(self.headers.get("Authorization"))
    code, name = next(x for key, x in self.codes.items() if key in self.path.split("/"))
    self.send_response(code)
    self.send_header("X-Error-Code", name)
    self.send_header("Content-Length", "0")
    self.end_headers()

  do_HEAD = do_GET

  def log_message(self, *_):
    pass


@pytest.fixture
def server(cache, monkeypatch):
  """A hub that refuses, in place of the real one; it returns the tokens it got."""
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as serving:
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{serving.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", where)
    monkeypatch.setattr(_Refusing, "tokens", [])
    yield _Refusing.tokens
    serving.shutdown()


@pytest.mark.parametrize("read", [weights_source.directory, _load])
@pytest.mark.parametrize(
  ("name", "match"),
  [
    ("org/gated", "is gated: accept its terms at https://huggingface.co/.*org/gated"),
    ("org/none", "no such .* on the hub, or a private one; .* HF_TOKEN"),
    ("org/old@v9", "org/old has no such revision"),
  ],
)
def test_refusal_of_the_hub_is_one_line(server, read, name, match):
  with pytest.raises(ValueError, match=match) as caught:
    read(f"hub:{name}")
  assert "\n" not in str(caught.value) and server


def test_token_is_of_the_environment_alone(server, monkeypatch, tmp_path):
  (tmp_path / "token").write_text("hf_of_a_file")
  monkeypatch.setattr(
    huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token")
  )
  for token, sent in ((None, None), ("hf_mine", "Bearer hf_mine")):
    if token is not None:
      monkeypatch.setenv("HF_TOKEN", token)
    server.clear()
    with pytest.raises(ValueError, match="gated"):
      weights_source.directory("hub:org/gated")
    assert set(server) == {sent}


@pytest.mark.parametrize("read", [weights_source.directory, _load])
def test_no_network_is_one_line(cache, monkeypatch, read):
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
  with pytest.raises(ValueError, match=r"is not in the cache .* cannot be downloaded"):
    read("hub:org/none")


def test_data_set_of_which_the_cache_has_a_part_is_refused(cache):
  folder = hub_cache.repository(cache, "dataset", "org/part")
  hub_cache.jsonl(folder / "data" / "train-00000-of-00003.jsonl", PAIR)
  hub_cache.jsonl(folder / "data" / "train-00002-of-00003.jsonl", PAIR)
  with pytest.raises(ValueError, match=r"not data/train-00001-of-00003\.jsonl"):
    _load("hub:org/part")


def test_card_may_name_files_by_split_in_a_mapping(cache):
  folder = hub_cache.repository(cache, "dataset", "org/mapped")
  hub_cache.jsonl(folder / "a.jsonl", PAIR)
  hub_cache.jsonl(folder / "b.jsonl", PAIR, PAIR)
  files = "{train: a.jsonl, test: b.jsonl}"
  card = f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n"
  (folder / "README.md").write_text(card)
  assert [len(_load("hub:org/mapped", s).records) for s in ("train", "test")] == [1, 2]
