"""One of several processes of small runs, from the command line.

python -m tests.sharding.processes INDEX HOST:PORT DIRECTORY
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
from flax import struct

from tests.train.tiny_runs import MODEL
from xpo_jax import cli
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Rollouts, Scratch
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import rules
from xpo_jax.report import run_page
from xpo_jax.sharding import distributed, place
from xpo_jax.sharding import mesh as meshes
from xpo_jax.train import rewards

SPLIT = {
  "start": Scratch(MODEL),
  "optimizer": Optimizer(learning_rate=1e-3),
  "mesh": MeshShape(fsdp=2),
}
OFFLINE = Experiment(
  ObjectiveConfig("simpo"),
  Data("pairs", rows_per_step=8, row_length=128, epochs=8),
  loop=Loop(log_every=1, checkpoint_every=1),
  **SPLIT,
)
ONLINE = Experiment(
  ObjectiveConfig("rloo"),
  Rollouts(
    Prompts("synthetic:20"),
    Feedback(Configured(rules.matches, pattern="[aeiou]")),
    Sampling(completions=2, max_completion_tokens=4),
    iterations=12,
    prompts_per_iteration=8,
  ),
  loop=Loop(log_every=1),
  **SPLIT,
)


@struct.dataclass
class Batch:
  """Arrays by row, and by prompt group."""

  tokens_MRL: np.ndarray
  weight_MB: np.ndarray


STOP_AFTER = 3  # iterations, until the second process gets a SIGTERM


def main(index: int, address: str, directory: Path) -> None:
  """Trains both experiments, one up to a SIGTERM; then starts what is refused."""
  run_page.write = lambda run_dir: run_dir  # of no interest here
  together = ["--distributed", "--coordinator", address, "--processes", "2"]
  together += ["--process-index", str(index)]

  def train(recipe: str, name: str, *words: str) -> None:
    command = ["train", str(directory / recipe), "--run-dir", str(directory / name)]
    print(name, "ended with", cli.main([*command, *words]), file=sys.stderr, flush=True)

  train("offline.py", "offline", *together)
  place_a_batch(index)
  if index == 1:
    rewards.ask = _stopping(rewards.ask)
  train("online.py", "online")
  train("offline.py", "configuration", "--optimizer.learning-rate", f"{1 + index}e-3")
  os.chdir(directory / f"host{index}")  # which has other records in a file of one name
  train("offline.py", "data", "--data.path", "pairs.jsonl")
  train("offline.py", f"directory{index}")
  if index == 1:
    yaml_file.code_digest = lambda: "other code"
  train("offline.py", "code")


def place_a_batch(index: int) -> None:
  """Places a batch on a mesh whose tensor axis spans both processes: rows are not cut
  by process."""
  devices = jax.devices()
  across = [devices[0], devices[4], devices[1], devices[5]]
  mesh = meshes.make_mesh(data=2, tensor=2, devices=across)
  batch = Batch(np.arange(24).reshape(1, 4, 6), np.ones((1, 3)))
  distributed.assert_same(batch, "the batch")
  placed = place.place_batch(mesh, batch)
  parts = {s.data.shape for s in placed.tokens_MRL.addressable_shards}
  total = jax.jit(lambda b: (b.tokens_MRL**2).sum() * b.weight_MB.sum())(placed)
  whole = distributed.to_host(placed)
  same = jax.tree.map(np.array_equal, whole, batch)
  flags = distributed.agreed(index == 0), distributed.agreed(index == 1)
  try:
    other = batch.replace(weight_MB=np.full((1, 3), index))
    distributed.assert_same(other, "the batch")
  except AssertionError as error:
    refused = "the batch differs between processes" in str(error)
  found = [parts, int(total), all(jax.tree.leaves(same)), flags, refused]
  for items in (["a", "b", "c"], ["d"]):
    own = distributed.share(len(items))
    found.append(distributed.gather_shares(own, items[own]))
  print("PLACED", *found, file=sys.stderr, flush=True)


def _stopping(ask):
  calls = []

  def asking(*arguments):
    calls.append(arguments)
    if len(calls) == STOP_AFTER:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(2)  # JAX looks for the signal once a second
    return ask(*arguments)

  return asking


if __name__ == "__main__":
  main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
