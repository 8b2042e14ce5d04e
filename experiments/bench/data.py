"""Prepares pairs of texts for training: CPU seconds and memory a pair.

    python experiments/bench/data.py [--pairs 160000 16000] [--ways held streamed]

Pairs as long as those of Anthropic HH, of synthetic reviews, in JSON lines, through
`loading.load` and `audit.prepare`: read, tokenised, counted, split by prompt
and stored. Each way in a process of its own: "held" in memory, "streamed" as
sources larger than `sources.HELD_BYTES` are. Prints a JSON line each.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xpo_jax.config.data import Data
from xpo_jax.data import audit, sources, synthetic_reviews
from xpo_jax.train import loading

WAYS = ("held", "streamed")
WORDS = (55, 35, 35)  # median words of a prompt, chosen, rejected; log-normal
SPREAD = 0.6


def write_pairs(path: Path, count: int) -> None:
  """Writes pairs as JSON lines."""
  rng = random.Random(0)
  reviews = ["".join(both) for both in synthetic_reviews.generate(4096, 0)]
  words = " ".join(reviews).split()

  def text(median: int) -> str:
    length = max(3, round(median * rng.lognormvariate(0, SPREAD)))
    at = rng.randrange(len(words) - length)
    return " ".join(words[at : at + length])

  with path.open("w", encoding="utf-8") as file:
    for n in range(count):
      prompt, chosen, rejected = map(text, WORDS)
      row = {"prompt": prompt, "chosen": f" {n} {chosen}", "rejected": f" {rejected}"}
      file.write(json.dumps(row) + "\n")


def measure(path: Path, way: str) -> dict:
  """Figures of one way, in this process."""
  tokenizer = synthetic_reviews.train_bpe(
    ["".join(both) for both in synthetic_reviews.generate(4096, 0)], 1024
  )
  sources.HELD_BYTES = 2**62 if way == "held" else -1
  before = _peak_kib()
  cpu, wall = time.process_time(), time.monotonic()
  data = Data(str(path))
  loaded = loading.load(data, data, {})
  prepared = audit.prepare(
    loaded,
    tokenizer,
    fractions={"train": 0.99, "held_out": 0.01},
    directory=path.parent,
  )
  cpu, wall = time.process_time() - cpu, time.monotonic() - wall
  splits = prepared.audit.splits.values()
  pairs = sum(split["examples"] for split in splits)
  return {
    "way": way,
    "pairs": pairs,
    "mib": round(path.stat().st_size / 2**20),
    "tokens": sum(split["tokens"] for split in splits),
    "cpu_s": round(cpu, 1),
    "wall_s": round(wall, 1),
    "peak_mib": round(_peak_kib() / 2**10),
    "kib_a_pair": round((_peak_kib() - before) / pairs, 2),
  }


def _peak_kib() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
  """Measures every way in its own process."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--pairs", type=int, nargs="+", default=[16_000, 160_000])
  parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
  parser.add_argument("--of", nargs=2, metavar=("FILE", "WAY"), help="measure here")
  options = parser.parse_args()
  if options.of:
    print(json.dumps(measure(Path(options.of[0]), options.of[1])))
    return
  with tempfile.TemporaryDirectory() as directory:
    for count in options.pairs:
      path = Path(directory) / f"{count}.jsonl"
      write_pairs(path, count)
      for way in options.ways:
        command = [sys.executable, __file__, "--of", str(path), way]
        subprocess.run(command, check=True)


if __name__ == "__main__":
  main()
