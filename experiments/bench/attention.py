"""Attention by blocks beside attention that masks whole rows: seconds, temporaries.

    python experiments/bench/attention.py [--length 1024 2048 4096] [--block 32]
    python experiments/bench/attention.py --topology v5e:2x2     (pip install libtpu)

Without a topology: rows are packed with groups of a prompt and two completions of
log-normal lengths as in Anthropic HH (median 60 tokens each, sigma 0.6), 4,096 tokens
in all, 8 heads of 64, float32, one thread, process CPU seconds. `pairs` is the number
of pairs of positions that are computed over those that the mask allows. The results of
the two are compared; a difference above 1e-5 stops the script. A minute.

With one: a row of 4,096 tokens of such groups, and one of a pair, a prompt and two
completions of 1,024 tokens each; 32 heads of 128 that share 8 key heads, bfloat16,
blocks of 128, one chip, compiled ahead of time; a line for each row and way, `dense`,
`blocked` and the `kernels` of TPUs. `estimate_ms` adds up the compiler's estimated
cycles at the chip's clock, loops by their mean number of turns. Of kernels it states
none: `kernel_ms`, which it contains, is the time of their products at the chip's peak,
so that the estimate is a lower bound. Lists of pairs are arguments: they are made once
a batch, for all layers.
"""

import argparse
import json
import os
import time

os.environ["XLA_FLAGS"] = (
  "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
  + os.environ.get("XLA_FLAGS", "")
)

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.ops import attention
from xpo_jax.ops.tpu import attention as kernels
from xpo_jax.topology import flops, hlo, slices

TOKENS, HEADS, DIM, MEDIAN, SIGMA, BRANCHES = 4096, 8, 64, 60, 0.6, 2
SCALE = DIM**-0.5
TPU_HEADS, TPU_KEY_HEADS, TPU_DIM, TPU_BLOCK = 32, 8, 128, 128


def packed(rng: np.random.Generator, length: int) -> np.ndarray:
  """Segments, branches and positions of a row, `[3, length]`."""
  row, at, group = np.zeros((3, length), np.int32), 0, 0
  while True:
    sizes = np.ceil(rng.lognormal(np.log(MEDIAN), SIGMA, BRANCHES + 1)).astype(int)
    if at + sizes.sum() > length:
      return row
    group += 1
    for branch, size in enumerate(sizes):
      position = np.arange(size) + (sizes[0] if branch else 0)
      row[:, at : at + size] = [[group] * size, [branch] * size, position]
      at += size


def measure(length: int, block: int) -> dict:
  """Both ways of one row length."""
  rng = np.random.default_rng(0)
  rows = np.stack([packed(rng, length) for _ in range(TOKENS // length)], 1)
  ids = attention.ids(*jnp.asarray(rows))
  shape = (*rows.shape[1:], HEADS, DIM)
  *inputs, weight = jnp.asarray(rng.standard_normal((4, *shape)), jnp.float32)
  weight = jnp.where(ids.key[..., None, None] >= 0, weight, 0)

  def dense(query, key, value):
    return attention.dense(query, key, value, attention.allowed(ids, ids), scale=SCALE)

  def blocked(query, key, value):
    pairs = attention.block_pairs(ids, block)
    more = {"block": block, "scale": SCALE}
    return attention.blocked(query, key, value, ids, pairs, **more)

  needed = int(attention.allowed(ids, ids).sum())
  listed = int(attention.block_pairs(ids, block).start[-1]) * block**2
  line = {"length": length, "block": block}
  results = {}
  for attend, computed in ((dense, rows[0].size * length), (blocked, listed)):

    def loss(*inputs, attend=attend):
      return (attend(*inputs) * weight).sum()

    forward = jax.jit(lambda *x, attend=attend: attend(*x) * weight)
    both = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    results[attend] = jax.block_until_ready((forward(*inputs), both(*inputs)[1]))
    compiled = both.lower(*inputs).compile()
    line[attend.__name__] = {
      "forward_s": least_seconds(forward, inputs),
      "gradient_s": least_seconds(both, inputs),
      "temporaries_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
      "pairs": round(computed / needed, 2),
    }
  for x, y in zip(*map(jax.tree.leaves, results.values()), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)
  return line


def least_seconds(function, inputs) -> float:
  """CPU seconds of a call, the least of three."""
  seconds = []
  for _ in range(3):
    began = time.process_time()
    jax.block_until_ready(function(*inputs))
    seconds.append(time.process_time() - began)
  return round(min(seconds), 4)


# --- Ahead of time


def a_pair(size: int = 1024) -> np.ndarray:
  """Segments, branches and positions of a prompt and two completions, `[3, 3 size]`."""
  index = np.arange(3 * size)
  return np.stack(
    [np.ones_like(index), index // size, index - index // (2 * size) * size]
  )


def ahead(name: str, row: np.ndarray, topology: str):
  """Lines of one row on one chip of a topology."""
  slice_ = slices.parse(topology)
  sharding = jax.sharding.SingleDeviceSharding(slices.devices(slice_)[0])
  ids = attention.ids(*jnp.asarray(row[:, None], jnp.int32))
  pairs = attention.block_pairs(ids, TPU_BLOCK)
  needed = int(attention.allowed(ids, ids).sum())
  trips = int(pairs.start[-1]) / (len(pairs.start) - 1)
  listed = int(pairs.start[-1]) * TPU_BLOCK**2

  def shape(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  def heads(count):
    return shape(jnp.zeros((1, row.shape[1], count, TPU_DIM), jnp.bfloat16))

  inputs = [heads(TPU_HEADS), heads(TPU_KEY_HEADS), heads(TPU_KEY_HEADS)]
  ids, pairs = jax.tree.map(shape, (ids, pairs))
  more = {"scale": TPU_DIM**-0.5}

  def dense(query, key, value, ids, pairs):
    del pairs
    return attention.dense(query, key, value, attention.allowed(ids, ids), **more)

  def by_blocks(way):
    return lambda *given: way(*given, block=TPU_BLOCK, **more)

  ways = {
    "dense": dense,
    "blocked": by_blocks(attention.blocked),
    "kernels": by_blocks(kernels.blocked),
  }
  for way, attend in ways.items():

    def gradient(*given, attend=attend):
      *given, d_mixed = given
      out, pull = jax.vjp(lambda *x: attend(*x, *given[3:]), *given[:3])
      return out, pull(d_mixed)

    computed = row.shape[1] ** 2 if way == "dense" else listed
    line = {"row": name, "way": way, "topology": topology}
    line["pairs"] = round(computed / needed, 2)
    arguments = (*inputs, ids, pairs)
    line["forward"] = compiled(attend, arguments, trips, slice_.chip)
    line["gradient"] = compiled(gradient, (*arguments, inputs[0]), trips, slice_.chip)
    yield line


def compiled(function, arguments, trips: float, chip: slices.Chip) -> dict:
  """Figures of a program; `trips`: mean number of key blocks of a query block."""
  traced = jax.jit(function).trace(*arguments)
  program = traced.lower().compile()

  def loops(path: str) -> float:
    if attention.KEY_BLOCKS not in path:
      raise ValueError(f"a loop of unknown length: {path}")
    return trips

  kernel_ms = flops.in_kernels(traced.jaxpr, loops) / chip.flops * 1e3
  cycles = hlo.read(program.as_text(), loops).cycles
  return {
    "temporaries_mib": round(program.memory_analysis().temp_size_in_bytes / 2**20),
    "estimate_ms": round(cycles / chip.clock * 1e3 + kernel_ms, 2),
    "kernel_ms": round(kernel_ms, 2),
  }


def main() -> None:
  """Prints a JSON line for each length, or row and way."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--length", type=int, nargs="+", default=[1024, 2048, 4096])
  parser.add_argument("--block", type=int, default=32)
  parser.add_argument("--topology", help="of a TPU with readable programs: v5e:2x2")
  options = parser.parse_args()
  if options.topology:
    rows = {"HH": packed(np.random.default_rng(0), TOKENS), "pair": a_pair()}
    for name, row in rows.items():
      for line in ahead(name, row, options.topology):
        print(json.dumps(line), flush=True)
    return
  for length in options.length:
    print(json.dumps(measure(length, options.block)), flush=True)


if __name__ == "__main__":
  main()
