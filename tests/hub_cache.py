"""A cache folder laid out as the hub's, and no network."""

import json

import huggingface_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def use(folder, monkeypatch):
  """Makes a folder the hub's cache, offline and without a token; returns it."""
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.delenv("HF_TOKEN", raising=False)
  return folder


def repository(cache, kind, repo, revision="main"):
  """The folder of a snapshot, which a branch or tag points to."""
  root = cache / f"{kind}s--{repo.replace('/', '--')}"
  (root / "refs").mkdir(parents=True, exist_ok=True)
  (root / "refs" / revision).write_text(COMMIT)
  folder = root / "snapshots" / COMMIT
  folder.mkdir(parents=True, exist_ok=True)
  return folder


def jsonl(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(map(json.dumps, rows)))
