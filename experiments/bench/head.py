"""Statistics of a head beside whole logits: temporaries, seconds, and a TPU's cycles.

    python experiments/bench/head.py [--block 256 512]
    python experiments/bench/head.py --topology v5e:2x2     (pip install libtpu)

One JSON line for each set of statistics and each way to the gradient of hidden states
and head: `whole` logits in plain JAX, in `chunks` of tokens, by `blocks` of the
vocabulary, and on a TPU its `kernel`. The sets: `dpo` reads the log-probability, `step`
the entropy beside it as every step reports, `tdpo2` log-probability and KL of a live
reference.

Temporaries are what the compiler states, in units of one float32 array [tokens, V].
Without a topology: 2,048 tokens, width 512, V 16,384, float32, one thread, process CPU
seconds, the least of three; the results of the ways are compared, a difference above
1e-5 stops the script. With one: 4,096 tokens, width 4,096, V 128,256, bfloat16 on one
chip, compiled ahead of time; `estimate_ms` adds up the compiler's estimated cycles at
1.5 GHz, loops by their number of turns. Of a kernel it states none: its products are
added at the peak, 197 TFLOP/s, so that it is a lower bound. `floor_ms` is what the
products need that no way can do without (logits and two gradients; of a reference
logits), at that rate.
"""

import argparse
import json
import os
import time

os.environ["XLA_FLAGS"] = (
  "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
  + os.environ.get("XLA_FLAGS", "")
)
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from xpo_jax.models import score
from xpo_jax.ops import token_stats
from xpo_jax.ops.token_stats import LOGP, REF_KL, REF_LOGP
from xpo_jax.sharding import mesh as meshes
from xpo_jax.topology import hlo

SETS = {
  "dpo": (LOGP,),
  "step": (LOGP, token_stats.detached(token_stats.ENTROPY)),
  "tdpo2": (LOGP, REF_LOGP, REF_KL, token_stats.detached(token_stats.ENTROPY)),
}
CPU_SIZES = {"rows": 8, "tokens": 2048, "width": 512, "vocab": 16_384}
TPU_SIZES = {"rows": 1, "tokens": 4096, "width": 4096, "vocab": 128_256}
CLOCK_GHZ, TERAFLOPS = 1.5, 197


def whole(stats, hidden, head, target_RC):
  """Statistics of all logits at once, differentiated by JAX."""
  roles = {
    role: jnp.einsum("rcd,vd->rcv", x, head[role], preferred_element_type=jnp.float32)
    for role, x in hidden.items()
  }
  return {s.field: s.fn({r: roles[r] for r in s.roles}, target_RC) for s in stats}


def gradient(ways, stats):
  """Value and gradient of a loss that weights all statistics of all tokens."""

  def loss(policy, ref, target_RC):
    both = {"policy": policy} | ({"ref": jax.lax.stop_gradient(ref)} if ref else {})
    hidden, head = ({role: x[i] for role, x in both.items()} for i in (0, 1))
    out = ways(stats, hidden, head, target_RC)
    return sum(jnp.sin(x).sum() for x in out.values())

  return jax.jit(jax.value_and_grad(loss))


def all_ways(blocks, sizes, chip=None):
  """Name -> function like `whole`; with a TPU's kernel, where there is a chip."""
  chunk = score.chunk_length(
    sizes["rows"], sizes["tokens"] // sizes["rows"], sizes["vocab"], sizes["width"]
  )

  def way(**how):
    return lambda stats, hidden, head, target: score.token_statistics(
      hidden, head, target, stats, **how
    )

  ways = {"whole": whole, f"chunks of {chunk}": way(chunk=chunk)}
  ways |= {f"blocks of {size}": way(block=size) for size in blocks}
  if chip is not None:
    ways["kernel"] = way(mesh=meshes.make_mesh(devices=[chip]))
  return ways


def shapes(sizes, stats, dtype, sharding=None):
  """The arguments of `gradient`."""

  def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  rows, width = sizes["rows"], sizes["width"]
  target = (rows, sizes["tokens"] // rows)
  model = array((*target, width), dtype), array((sizes["vocab"], width), dtype)
  live = any("ref" in stat.roles for stat in stats)
  return model, model if live else None, array(target, jnp.int32)


def chosen(ways, only):
  """The ways whose names begin with one of those asked for, and their functions."""
  return [(way, run) for way, run in ways.items() if way.startswith(tuple(only))]


def temporaries(compiled, sizes) -> float:
  """In units of one float32 array of tokens by vocabulary."""
  unit = 4 * sizes["tokens"] * sizes["vocab"]
  return round(compiled.memory_analysis().temp_size_in_bytes / unit, 4)


# --- Here


def measure(name, blocks, sizes, only):
  """Lines of one set of statistics on this machine's CPU."""
  arguments = shapes(sizes, SETS[name], jnp.float32)
  rng = np.random.default_rng(0)

  def draw(shape):
    if shape.dtype == jnp.int32:
      return jnp.asarray(rng.integers(0, sizes["vocab"], shape.shape), jnp.int32)
    scale = sizes["width"] ** -0.25
    return scale * jnp.asarray(rng.standard_normal(shape.shape), jnp.float32)

  inputs = jax.tree.map(draw, arguments)
  expected, first = None, None
  for way, statistics in chosen(all_ways(blocks, sizes), only):
    step = gradient(statistics, SETS[name])
    actual = jax.block_until_ready(step(*inputs))
    seconds = []
    for _ in range(3):
      began = time.process_time()
      jax.block_until_ready(step(*inputs))
      seconds.append(time.process_time() - began)
    expected, first = expected or actual, first or min(seconds)
    for x, y in zip(*map(jax.tree.leaves, (expected, actual)), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    yield {
      "set": name,
      "way": way,
      "temporaries": temporaries(step.lower(*inputs).compile(), sizes),
      "cpu_s": round(min(seconds), 3),
      "over_whole": round(min(seconds) / first, 2),
    }


# --- Ahead of time


def ahead(name, blocks, sizes, only, topology):
  """Lines of one set of statistics on one chip of a topology."""
  chips = topologies.get_topology_desc(topology, platform="tpu").devices
  sharding = jax.sharding.SingleDeviceSharding(chips[0])
  arguments = shapes(sizes, SETS[name], jnp.bfloat16, sharding)
  # Logits, and the gradients of hidden states and head; of a reference logits alone.
  products = 4 if arguments[1] else 3
  flops = 2 * products * sizes["tokens"] * sizes["vocab"] * sizes["width"]
  floor = flops / TERAFLOPS / 1e9
  for way, statistics in chosen(all_ways(blocks, sizes, chips[0]), only):
    compiled = gradient(statistics, SETS[name]).lower(*arguments).compile()
    cycles = hlo.read(compiled.as_text(), no_loops).cycles
    estimate = cycles / CLOCK_GHZ / 1e6
    if way == "kernel":  # logits twice, and the two gradients
      estimate += floor * (products + (2 if arguments[1] else 1)) / products
    yield {
      "set": name,
      "way": way,
      "topology": topology,
      "temporaries": temporaries(compiled, sizes),
      "estimate_ms": round(estimate, 1),
      "floor_ms": round(floor, 1),
      "over_floor": round(estimate / floor, 2),
    }


def no_loops(path: str) -> float:
  """The number of turns of a loop whose length is data: there is none here."""
  raise ValueError(f"a loop of unknown length: {path}")


def main() -> None:
  """Prints a JSON line for each set of statistics and way."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--block", type=int, nargs="+", default=[256, 512])
  parser.add_argument("--set", nargs="+", default=list(SETS), choices=list(SETS))
  parser.add_argument(
    "--only", nargs="+", default=[""], help="ways, by their first word"
  )
  parser.add_argument("--topology", help="of a TPU, such as v5e:2x2")
  options = parser.parse_args()
  for name in options.set:
    if options.topology:
      lines = ahead(name, options.block, TPU_SIZES, options.only, options.topology)
    else:
      lines = measure(name, options.block, CPU_SIZES, options.only)
    for line in lines:
      print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
