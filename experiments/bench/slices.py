"""Checks the recipes at the size of papers on slices of TPUs that are not here.

    python -m experiments.bench.slices --out slices.jsonl [RUN ...]

A run is one quoted argument, "RECIPE [ARGUMENT ...] [FLAG ...] SLICE", as of `xpo
check`; without any, those of RUNS.
One line a recipe and slice: per chip bytes, FLOPs, estimated seconds, collectives, and
the compiler's version (`xpo check RECIPE --topology SLICE`; the extra tpu-check). A
line that is there already is not computed again. Each takes minutes of a CPU.
"""

import argparse
import importlib.metadata
import json
import time
from pathlib import Path

from xpo_jax.studies import find_recipe
from xpo_jax.topology import check

RUNS = (
  "dpo_llama v5e:16x16",
  "dpo_llama --start.model.remat dots v5e:16x16",
  "dpo_llama --start.model.remat offload v5e:16x16",
  "dpo_llama size=1B rows=64 v5e:4x4",
  "dpo_llama size=70B v5e:16x16",
  "ppo_llama_8b v5e:16x16",
  "grpo_llama_8b v5e:16x16",
  "dpo_llama v5p:4x4x4",
  "dpo_llama size=1B rows=64 v5p:2x2x2",
  "dpo_llama size=70B v5p:4x8x8",
  "ppo_llama_8b v5p:4x4x4",
  "grpo_llama_8b v5p:4x4x4",
  "dpo_llama v6e:8x8",
  "dpo_llama size=1B rows=64 v6e:2x4",
  "dpo_llama size=70B v6e:16x16",
  "ppo_llama_8b v6e:8x8",
  "grpo_llama_8b v6e:8x8",
)


def measure(run: str) -> dict:
  """The figures of a recipe on a slice."""
  start = time.process_time()
  recipe, *words, name = run.split()
  found = find_recipe.configured(recipe, words, f"xpo check {recipe}")
  report = check.check(found.experiment, name)
  print("\n".join(check.lines(report)), flush=True)
  return {
    "run": run,
    "mesh": dict(report.mesh),
    "fits": report.fits,
    "libtpu": importlib.metadata.version("libtpu"),
    "cpu_seconds": round(time.process_time() - start),
    "programs": {
      one.program.name: {
        "source": one.source,
        "arguments_bytes": one.arguments,
        "temporary_bytes": one.temporaries,
        "peak_bytes": one.peak,
        "flops": one.flops,
        "least_flops": one.least,
        "seconds": one.seconds,
        "mfu": one.least / report.slice.chip.flops / one.seconds,
        "collectives": dict(one.collectives),
        "runs": one.program.runs,
      }
      for one in report.figures
    },
  }


def main() -> None:
  """Appends a line of each run that has none."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("runs", nargs="*", metavar="RUN")
  parser.add_argument("--out", type=Path, required=True)
  args = parser.parse_args()
  runs = args.runs or list(RUNS)
  there = set()
  if args.out.exists():
    lines = args.out.read_text(encoding="utf-8").splitlines()
    there = {json.loads(line)["run"] for line in lines}
  for run in runs:
    if run not in there:
      line = json.dumps(measure(run))
      with args.out.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
  main()
