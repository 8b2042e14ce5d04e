"""Tests a judge behind transformers' server; needs the extra `serve`, 30 s."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest

from xpo_jax.data import synthetic_reviews
from xpo_jax.feedback import endpoint, judge
from xpo_jax.feedback.client import Endpoint, JudgeError
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.config import Config

# The server may be in another environment: XPO_SERVE=/path/to/bin/transformers.
_BESIDE = Path(sys.executable).with_name("transformers")
SERVER = os.environ.get("XPO_SERVE", str(_BESIDE))
_READY = "XPO_SERVE" in os.environ or importlib.util.find_spec("torch") is not None

pytestmark = pytest.mark.skipif(
  not _READY or shutil.which(SERVER) is None,
  reason="no torch here: pip install 'xpo_jax[serve]', or set XPO_SERVE",
)

CHAT = (
  "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
  "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  """Serves a model of random weights with transformers; gives URL and model name."""
  directory = tmp_path_factory.mktemp("served")
  tokenizer = synthetic_reviews.train_bpe(
    [p + c for p, c in synthetic_reviews.generate(50, seed=0)], 300
  )
  tokenizer.chat_template = CHAT
  config = Config(
    vocab=300, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_width=32
  )
  params = {"lm": jax.jit(transformer.model(config).init)(jax.random.key(0))}
  hf_checkpoint.save(directory / "model", config, params, tokenizer=tokenizer)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  name = str(directory / "model")
  command = [SERVER, "serve", name, "--host", "127.0.0.1", "--port", str(port)]
  hub = directory / "hub"
  hub.mkdir()
  environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(directory)}
  with open(directory / "log", "wb") as log:
    server = subprocess.Popen(
      [*command, "--device", "cpu"], stdout=log, stderr=log, env=environment
    )
    try:
      _wait_for(port, server, directory / "log")
      yield f"http://127.0.0.1:{port}/v1", name
    finally:
      server.terminate()
      server.wait(20)


def _wait_for(port, server, log):
  for _ in range(240):
    try:
      urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
      return
    except urllib.error.HTTPError:
      return  # it responds
    except OSError:
      assert server.poll() is None, log.read_text()[-2000:]
      time.sleep(0.5)
  raise AssertionError(log.read_text()[-2000:])


def _endpoint(served, **settings):
  url, name = served
  return Endpoint(name, url, **{"max_tokens": 8, "attempts": 2} | settings)


def test_twenty_pairs_are_judged_cached_and_replayed(served, tmp_path):
  texts = synthetic_reviews.generate(40, seed=1)
  pairs = (
    [prompt for prompt, _ in texts[:20]],
    [text for _, text in texts[:20]],
    [text for _, text in texts[20:]],
  )
  cache = str(tmp_path)
  backend = endpoint.connect(_endpoint(served, cache=cache), logprobs=False)
  scores = judge.preference(backend, logprobs=False, retries=0)(*pairs)
  # Random weights: mostly abstentions, some verdicts.
  assert all(np.isnan(p) or 0 <= p <= 1 for p in scores.value_N)
  replayed = endpoint.connect(
    _endpoint(served, cache=cache, replay=True), logprobs=False
  )
  again = judge.preference(replayed, logprobs=False, retries=0)(*pairs)
  np.testing.assert_array_equal(again.value_N, scores.value_N)


def test_missing_logprobs_raise(served):
  with pytest.raises(JudgeError, match="gives no log-probabilities"):
    endpoint.connect(_endpoint(served), logprobs=True)


def test_unknown_model_raises(served):
  url, _ = served
  with pytest.raises(JudgeError, match=r"no-such-model|rejected|not as a chat"):
    endpoint.connect(Endpoint("no-such-model", url, attempts=1), logprobs=False)
