"""A few of the flips of `experiments/bench/flip_bytes.py`."""

import random

import pytest

from experiments.bench import flip_bytes, kill_every_write
from tests.train.tiny_runs import PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import Loop, Scratch

_SHORT = {
  "finished": experiments.replace(
    kill_every_write.OFFLINE,
    start=Scratch(kill_every_write.OFFLINE.start.experiment.start.model),
    adapter=None,
    steps=1,
    loop=Loop(log_every=1),
  ),
  "stopped": experiments.replace(
    PLAIN,
    iterations=2,
    loop=Loop(log_every=1, eval_every=1),
    evaluation=Evaluation(share=0.2),
  ),
}
# Files of each state, and what their flips must come to.
CAUGHT, HARMLESS = "caught", "harmless"
FLIPS = {
  ("finished", "config.yaml"): CAUGHT,
  ("finished", "data.json"): CAUGHT,
  ("finished", "evaluation.json"): CAUGHT,
  ("finished", "metrics.jsonl"): CAUGHT,
  ("finished", "policy/config.json"): CAUGHT,
  ("finished", "policy/model.safetensors"): CAUGHT,
  ("finished", "policy/tokenizer.json"): CAUGHT,
  ("finished", "records.jsonl"): CAUGHT,
  ("finished", "samples.jsonl"): CAUGHT,
  ("finished", "shown.json"): CAUGHT,
  ("finished", "summary.json"): CAUGHT,
  ("finished", "tokenizer/tokenizer.json"): CAUGHT,
  ("stopped", "held_out/000000.jsonl"): CAUGHT,
  ("stopped", "metrics.jsonl"): CAUGHT,
  ("stopped", "rollouts/000002.jsonl"): CAUGHT,
  ("stopped", "tokenizer/MANIFEST.sha256.json"): CAUGHT,
  ("stopped", "tensorboard"): HARMLESS,
}


@pytest.fixture(scope="module", params=sorted(flip_bytes.STATES))
def state(request, tmp_path_factory):
  """A directory in a state, and what commands do with it."""
  directory = tmp_path_factory.mktemp(request.param)
  experiment = _SHORT[request.param]
  return request.param, flip_bytes.sound(request.param, experiment, directory)


def test_flipped_bytes_are_caught_with_the_file_or_change_nothing(state):
  name, sound = state
  rng, run = random.Random(0), sound.root / kill_every_write.RUN
  for (where, file), outcome in FLIPS.items():
    if where == name:
      path = run / file
      if path.is_dir():
        (path,) = path.iterdir()
      at, bits = rng.randrange(path.stat().st_size), rng.randrange(1, 256)
      found, text = flip_bytes.flip(sound, path.relative_to(run), at, bits)
      assert found == outcome, (file, at, bits, text)
      assert len(text.splitlines()) <= 1
