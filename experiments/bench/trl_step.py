"""A DPO step beside TRL's: CPU seconds a pair and peak memory, same weights and rows.

    python -m experiments.bench.trl_step [--peer PYTHON_WITH_TRL] [--steps 6]

A Llama of 13.1M parameters and random weights, vocabulary 16,384, float32, the
reference's log-probs computed before the first step, AdamW, one thread on one pinned
core, each side in a process of its own. Two sets of pairs:
  fixed    8 pairs of a prompt and two completions of 128 tokens each, every step
  lengths  pairs of log-normal lengths as in Anthropic HH (median 60 tokens, sigma 0.6);
           TRL pads 8 to the longest, ours packs as many as fit into a row of 2,048
Prints a JSON line for each side and set, then the ratios; stops where the losses of
"fixed" differ by more than 1e-4. The peer needs torch, transformers, datasets and TRL.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
import transformers

from experiments.bench.sampling import CONFIG, ONE_THREAD
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Pretrained
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import sources
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.train import records_program

PEER = Path(__file__).with_name("trl_step_peer.py")
PROMPT = COMPLETION = 128
PAIRS, LEARNING_RATE, BETA, BOUND = 8, 1e-4, 0.1, 1e-4
MEDIAN, SIGMA = 60, 0.6
SETS = ("fixed", "lengths")


def write_inputs(directory: Path, steps: int) -> None:
  """Writes the model, its tokenizer, the settings, and the rows of both sets."""
  # A word is a token: lengths are exact, and no token spans prompt and completion.
  words = {f"w{i}": i for i in range(CONFIG.vocab - 3)}
  marks = ("<|end|>", "<|pad|>", "<|unknown|>")
  vocab = words | {mark: len(words) + i for i, mark in enumerate(marks)}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "<|unknown|>"))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token=marks[0], pad_token=marks[1], unk_token=marks[2]
  )
  params = jax.jit(transformer.model(CONFIG).init)(jax.random.key(0))
  hf_checkpoint.save(directory / "model", CONFIG, {"lm": params}, tokenizer=tokenizer)

  rng = np.random.default_rng(0)

  def text(length: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(0, len(words), length))

  def pair(prompt: int, chosen: int, rejected: int) -> dict[str, str]:
    both = (text(chosen - 1), text(rejected - 1))  # EOS is a token too
    return {"prompt": text(prompt) + " ", "chosen": both[0], "rejected": both[1]}

  def drawn() -> list[int]:
    found = np.ceil(rng.lognormal(np.log(MEDIAN), SIGMA, 3)).astype(int)
    return np.clip(found, 2, 512).tolist()

  rows = {
    "fixed": [pair(PROMPT, COMPLETION, COMPLETION) for _ in range(PAIRS)],
    "lengths": [pair(*drawn()) for _ in range(2 * PAIRS * steps)],
  }
  settings = {"pairs": PAIRS, "learning_rate": LEARNING_RATE, "beta": BETA}
  (directory / "jobs.json").write_text(json.dumps(settings | {"steps": steps} | rows))


def measure(directory: Path, name: str, steps: int) -> dict[str, Any]:
  """Ours, in this process."""
  rows = json.loads((directory / "jobs.json").read_text())[name]
  same = {"steps": steps, "epochs": steps}
  data = {
    "fixed": Data("rows", rows_per_step=PAIRS, groups_per_row=1, **same),
    "lengths": Data("rows", rows_per_step=1, row_length=2048, **same),
  }[name]
  experiment = Experiment(
    ObjectiveConfig("dpo", beta=BETA),
    data,
    Pretrained(str(directory / "model"), remat="none"),
    Optimizer(learning_rate=LEARNING_RATE, schedule="constant", clip=None),
    Loop(checkpoint_minutes=None),
    MeshShape(data=1),
  )
  datasets = {"rows": list(sources.from_dicts(rows, "rows").records)}
  run_dir = directory / f"run_{name}"
  run_dir.mkdir()
  inputs = records_program.check(experiment, datasets)
  program = records_program.prepare(
    experiment, run_dir, inputs, datasets, lambda line: None
  )
  state, seconds, losses, pairs = program.state, [], [], []
  for index in range(steps):
    start = time.process_time()
    state, metrics = program.advance(state, index)
    losses.append(float(jax.block_until_ready(metrics)["loss"]))
    seconds.append(time.process_time() - start)
    pairs.append(int(program.batch(index).present_MBK.any(-1).sum()))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  return {"seconds": seconds, "pairs": pairs, "losses": losses, "peak_mib": round(peak)}


def seconds_a_pair(found: dict[str, Any], name: str) -> float:
  """Without the first step, which compiles: the least of equal steps, else the mean."""
  steps = zip(found["seconds"][1:], found["pairs"][1:], strict=True)
  of_steps = [seconds / pairs for seconds, pairs in steps]
  return min(of_steps) if name == "fixed" else sum(of_steps) / len(of_steps)


def main() -> None:
  """Measures both sides on both sets."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--peer", default=sys.executable, help="a Python with TRL")
  parser.add_argument("--steps", type=int, default=6)
  parser.add_argument("--of", nargs=2, metavar=("DIRECTORY", "SET"), help="here")
  options = parser.parse_args()
  if options.of:
    found = measure(Path(options.of[0]), options.of[1], options.steps)
    print(json.dumps(found))
    return
  core = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
  env = os.environ | {
    "XLA_FLAGS": ONE_THREAD,
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
  }
  with tempfile.TemporaryDirectory() as temporary:
    write_inputs(Path(temporary), options.steps)
    for name in SETS:
      steps = ["--steps", str(options.steps)]
      commands = {
        "xpo_jax": ["-m", "experiments.bench.trl_step", *steps, "--of"],
        "trl": [str(PEER)],
      }
      sides = []
      for side, command in commands.items():
        python = sys.executable if side == "xpo_jax" else options.peer
        command = [*core, python, *command, temporary, name]
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
        found = json.loads(done.stdout.splitlines()[-1])
        found["s_a_pair"] = round(seconds_a_pair(found, name), 4)
        print(json.dumps({"side": side, "set": name} | found), flush=True)
        sides.append(found)
      a, b = sides
      print(
        f"{name}: {b['s_a_pair'] / a['s_a_pair']:.2f} x as fast as TRL, "
        f"{a['peak_mib'] / b['peak_mib']:.2f} of its memory",
        flush=True,
      )
      apart = max(abs(x - y) for x, y in zip(a["losses"], b["losses"], strict=True))
      if name == "fixed" and apart > BOUND:
        raise SystemExit(f"the losses differ by {apart:.1e}, more than {BOUND}")


if __name__ == "__main__":
  main()
