"""Compiles the sampler for slices of TPUs that are not here; tabulates a decode step.

    python -m experiments.bench.decode [--topology v5e:1x1 v5e:2x2] [--tensor 1]

Llama 3 1B, 8 prompts of 1,024 tokens, 4 completions of each of 256. A JSON line each:
the compiler's estimate of one token of all completions, the least time to read weights
and full caches once, collectives, and the size of the program by depth. Needs the extra
tpu-check; nothing runs.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator

import jax

from xpo_jax.config import experiment as experiments
from xpo_jax.config.experiment import Experiment, Scratch
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.models import transformer
from xpo_jax.models.config import Config
from xpo_jax.ops import attention
from xpo_jax.sharding import mesh as meshes
from xpo_jax.studies import llama
from xpo_jax.topology import flops, hlo, programs, slices

PROMPTS, COMPLETIONS = 8, 4
# Bytes a second between a chip and its memory (Google Cloud's pages of each version).
BANDWIDTH = {"v5e": 819e9, "v5p": 2765e9, "v6e": 1640e9}
DEPTHS = (4, 16)
TOKENS = 256  # of a completion, at most


def sampler(config: Config, mesh: jax.sharding.Mesh, dtype: str) -> programs.Program:
  """The program that samples."""
  run: Experiment = llama.on_rollouts(
    ObjectiveConfig("grpo"),
    "hub:prompts/of-any-text",
    None,
    completions=COMPLETIONS,
    prompts=PROMPTS,
    minibatches=1,
  )
  sampling = dataclasses.replace(
    run.data.sampling, weights_dtype=dtype, max_completion_tokens=TOKENS
  )
  run = experiments.replace(run, start=Scratch(config), sampling=sampling)
  return programs.make(run, mesh)[0]


def measure(name: str, tensor: int, dtype: str) -> Iterator[dict]:
  """Lines of a slice, by depth."""
  slice_ = slices.parse(name)
  fsdp = slice_.count // tensor
  mesh = meshes.make_mesh(1, fsdp, tensor, devices=slices.devices(slice_))
  whole = llama.config("1B")
  for layers in DEPTHS:
    config = dataclasses.replace(whole, layers=layers)
    program = sampler(config, mesh, dtype)
    with meshes.entered(mesh):
      compiled = program.function.lower(*program.arguments).compile()
    text = compiled.as_text()
    costs = [hlo.read(text, tokens_read(number)) for number in (1, 2)]
    cycles = costs[1].cycles - costs[0].cycles
    collectives = {
      kind: [both - once for both, once in zip(found, before, strict=True)]
      for kind, found in costs[1].collectives.items()
      if (before := costs[0].collectives.get(kind, (0.0, 0.0))) != found
    }
    yield {
      "topology": name,
      "mesh": dict(mesh.shape),
      "weights": dtype,
      "layers": layers,
      "step_ms": round(cycles / slice_.chip.clock * 1e3, 2),
      "least_ms": round(least_seconds(config, slice_, dtype) * 1e3, 2),
      "collectives": {
        kind: [round(x) for x in two] for kind, two in collectives.items()
      },
      "temporaries_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
      "program_lines": text.count("\n"),
    }


def tokens_read(number: int) -> flops.Loops:
  """The lengths that the text does not say: of the loop over tokens so many turns, and
  of those over the prompts' blocks of keys none, for they are in no decode step."""
  return lambda path: 0.0 if attention.KEY_BLOCKS in path else float(number)


def least_seconds(config: Config, slice_: slices.Slice, dtype: str) -> float:
  """Seconds to read weights and full caches once, evenly from all chips."""
  item = jax.numpy.dtype(dtype).itemsize
  shapes = jax.eval_shape(transformer.model(config).init, jax.random.key(0))
  weights = sum(x.size for x in jax.tree.leaves(shapes)) * item
  tokens = PROMPTS * (1024 + COMPLETIONS * TOKENS)
  cache = 2 * 2 * config.layers * config.kv_heads * config.head_dim * tokens
  return (weights + cache) / slice_.count / BANDWIDTH[slice_.chip.name]


def main() -> None:
  """Prints a JSON line for each slice and depth."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--topology", nargs="+", default=["v5e:1x1", "v5e:2x2"])
  parser.add_argument("--tensor", type=int, default=1, help="shards of heads")
  parser.add_argument(
    "--weights", default="bfloat16", help="dtype that is sampled with"
  )
  options = parser.parse_args()
  for name in options.topology:
    for line in measure(name, options.tensor, options.weights):
      print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
