"""Attention by blocks beside attention that masks whole rows: CPU seconds, temporaries.

    python experiments/bench/attention.py [--length 1024 2048 4096] [--block 64]

Rows are packed with groups of a prompt and two completions of log-normal lengths as in
Anthropic HH (median 60 tokens each, sigma 0.6), 4,096 tokens in all, 8 heads of 64,
float32, one thread. `pairs` is the number of pairs of positions that are computed over
those that the mask allows. The results of the two are compared; a difference above
1e-5 stops the script.

Needs no accelerator; a minute.
"""

import argparse
import json
import os
import time

os.environ["XLA_FLAGS"] = (
  "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.ops import attention

TOKENS, HEADS, DIM, MEDIAN, SIGMA, BRANCHES = 4096, 8, 64, 60, 0.6, 2
SCALE = DIM**-0.5


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


def main() -> None:
  """Prints a JSON line for each length."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--length", type=int, nargs="+", default=[1024, 2048, 4096])
  parser.add_argument("--block", type=int, default=64)
  options = parser.parse_args()
  for length in options.length:
    print(json.dumps(measure(length, options.block)), flush=True)


if __name__ == "__main__":
  main()
