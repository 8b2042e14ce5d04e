"""Tokens per second of sampling, beside transformers' `generate` on the same weights.

What: a Llama of 13.1M parameters, vocabulary 16,384, float32; prompts of 64 tokens, at
  most 64 new ones, 32 completions at once, temperature 1.
Command: python experiments/bench/sampling.py [--repeats 5] [--peer PYTHON]
Hardware: one pinned core, one thread, no accelerator; seconds are process CPU seconds,
  the best of the repeats.
Hours: 0.05
Result: see README.md in this folder.

Tasks:
  greedy, sampled  32 prompts, no stop token: every completion has 64 tokens
  varied           128 prompts; each token is a stop token with probability 1/24, so
                   that lengths are nearly geometric, cut at 64
Variants of `varied`:
  ours, batches    four batches, each until its longest completion has ended
  ours, refilled   32 slots, refilled as completions end
  generate         four batches
Only tokens of completions count, stop tokens included. Ours return log-probs too. The
script stops if the greedy texts differ in more than a few rows (float32 ties).

`generate` runs in PYTHON, an interpreter with torch and transformers (of an
environment of its own, if this one has no torch); without one, a note is printed.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from xpo_jax.models import continuous_batching, hf_checkpoint, sample, transformer
from xpo_jax.models.generation_config import GenerationConfig

BATCH, PROMPTS, PROMPT, NEW = 32, 128, 64, 64
CONFIG = transformer.Config(
  vocab=16_384,
  width=256,
  layers=6,
  heads=4,
  kv_heads=4,
  head_dim=64,
  mlp_width=680,
)
STOPS = CONFIG.vocab // 24  # the texts of random weights are nearly uniform
FLOORS = {"greedy": 1.5, "sampled": 1.5, "varied": 2.5}
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
PEER = Path(__file__).with_name("sampling_peer.py")


def main() -> None:
  """Measures ours and, where there is a torch, theirs; prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--peer", default=sys.executable, help="a Python with torch")
  parser.add_argument("--ours", metavar="DIRECTORY", help="measure ours here")
  args = parser.parse_args()
  if args.ours:
    print(json.dumps(measure(Path(args.ours), args.repeats)))
    return
  with tempfile.TemporaryDirectory() as directory:
    env = os.environ | {"XLA_FLAGS": ONE_THREAD, "JAX_PLATFORMS": "cpu"}
    env["TRANSFORMERS_VERBOSITY"] = "error"
    command = [sys.executable, __file__, "--repeats", str(args.repeats)]
    command += ["--ours", directory]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    ours = json.loads(done.stdout.splitlines()[-1])
    theirs = peer(args.peer, Path(directory), args.repeats)
  report(ours, theirs)


def measure(directory: Path, repeats: int) -> dict:
  """Tokens per CPU second of ours; leaves the tasks for the peer in a directory."""
  if sys.platform == "linux":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  model = transformer.model(CONFIG)
  params = jax.jit(model.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  prompt_BP = rng.integers(1, CONFIG.vocab, (PROMPTS, PROMPT), np.int32)
  stop_ids = rng.permutation(CONFIG.vocab - 1)[:STOPS].tolist()
  tasks = {
    "greedy": {"prompts": BATCH, "stop_ids": [], "greedy": True},
    "sampled": {"prompts": BATCH, "stop_ids": [], "greedy": False},
    "varied": {"prompts": PROMPTS, "stop_ids": stop_ids, "greedy": False},
  }
  hf_checkpoint.save(directory / "model", CONFIG, {"lm": params})
  np.save(directory / "prompts.npy", prompt_BP)
  settings = {
    "vocab": CONFIG.vocab,
    "batch": BATCH,
    "max_completion_tokens": NEW,
    "tasks": tasks,
  }
  (directory / "tasks.json").write_text(json.dumps(settings))

  def draw(fn: Callable, rows: slice, seed: int, name: str, **changes):
    row_B = np.arange(PROMPTS)[rows]
    task = tasks[name]
    return fn(
      model,
      params,
      sample.PromptBatch(prompt_BP[rows], np.full(len(row_B), PROMPT), row_B),
      config=GenerationConfig(NEW, stop_ids=task["stop_ids"], greedy=task["greedy"]),
      key=jax.random.key(seed),
      **changes,
    )

  def batches(name: str, seed: int) -> tuple[list, float]:
    count = tasks[name]["prompts"]
    rows = [slice(at, at + BATCH) for at in range(0, count, BATCH)]
    drawn = [jax.device_get(draw(sample.sample, r, seed, name)) for r in rows]
    return drawn, float(
      np.mean([continuous_batching.idle(one.length_BK) for one in drawn])
    )

  def refilled(seed: int) -> tuple[list, float]:
    drawn, work = draw(
      continuous_batching.sample, slice(None), seed, "varied", slots=BATCH
    )
    return [drawn], work.idle

  runs = {name: functools.partial(batches, name) for name in tasks}
  runs["refilled"] = refilled
  results = {}
  for name, run in runs.items():
    run(0)  # compiles
    best = 0.0
    for seed in range(repeats):
      start = time.process_time()
      drawn, idle = run(seed)
      tokens = sum(int(one.length_BK.sum()) for one in drawn)
      best = max(best, tokens / (time.process_time() - start))
    text = drawn[0].tokens_BKT[:, 0].tolist()
    results[name] = {"rate": best, "idle": idle, "text": text}
  return results


def peer(python: str, directory: Path, repeats: int) -> dict | None:
  """What sampling_peer.py prints, or None where it has no torch."""
  check = [python, "-c", "import torch, transformers"]
  if subprocess.run(check, stderr=subprocess.DEVNULL).returncode:
    return None
  command = [python, str(PEER), str(directory), str(repeats)]
  env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
  done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
  return json.loads(done.stdout.splitlines()[-1])


def report(ours: dict, theirs: dict | None) -> None:
  """Prints tokens per CPU second, idle shares and ratios."""
  print(
    f"{'tokens per CPU second':24}{'ours':>10}{'idle':>8}{'generate':>10}{'ratio':>8}"
  )
  for name, task in [*zip(FLOORS, FLOORS, strict=True), ("refilled", "varied")]:
    line = f"{name:24}{ours[name]['rate']:10.0f}{ours[name]['idle']:8.0%}"
    if theirs:
      rate = theirs[task]["rate"]
      line += f"{rate:10.0f}{ours[name]['rate'] / rate:8.2f}"
    print(line)
  if not theirs:
    print("generate: not measured, no torch here; see --peer")
    return
  print(theirs["versions"])
  same = np.mean(
    [
      a == b
      for a, b in zip(ours["greedy"]["text"], theirs["greedy"]["text"], strict=True)
    ]
  )
  print(f"greedy texts equal: {same:.0%} of the rows")
  if same < 0.9:
    raise SystemExit("the two decoders do not agree")
  best = {"greedy": "greedy", "sampled": "sampled", "varied": "refilled"}
  for task, floor in FLOORS.items():
    ratio = ours[best[task]]["rate"] / theirs[task]["rate"]
    verdict = "held" if ratio >= floor else "MISSED"
    print(f"{task}: {ratio:.2f} x generate, floor {floor}: {verdict}")


if __name__ == "__main__":
  main()
