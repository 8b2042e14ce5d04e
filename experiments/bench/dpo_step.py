"""One DPO step on a fixed batch: CPU seconds and peak memory, beside plain JAX.

What: the trainer's own step (forward, backward, AdamW, metrics) for a model of 13.1M
  parameters on 8 pairs of 128 + 128 tokens, vocabulary 16,384, float32.
Command: python experiments/bench/dpo_step.py [--steps 5] [--remat none]
Hardware: one pinned core, one thread, no accelerator; seconds are process CPU seconds,
  the least of the steps.
Hours: 0.02
Result: see README.md in this folder.

Variants, each in a process of its own (peak memory is the process's):
  plain        each completion in a row after its own copy of the prompt; the logits of
               policy and reference whole; `jax.grad` of the textbook loss
  online       the trainer's step; the reference runs beside the policy
  precomputed  the same with the reference's log-probabilities cached
All compute the same loss; the script stops if they do not.
"""

import argparse
import dataclasses
import functools
import json
import os
import resource
import subprocess
import sys
import time
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax import objectives
from xpo_jax.config import optim
from xpo_jax.data import pack, tokenise
from xpo_jax.models import score, transformer
from xpo_jax.models.config import Remat
from xpo_jax.ops import token_stats
from xpo_jax.train import state, step
from xpo_jax.types import Layout

PAIRS, PROMPT, RESPONSE, BETA = 8, 128, 128, 0.1
CONFIG = transformer.Config(
  vocab=16_384,
  width=256,
  layers=6,
  heads=4,
  kv_heads=4,
  head_dim=64,
  mlp_width=1024,
  gated=False,
  activation=transformer.Activation.GELU_TANH,
)
OPTIMIZER = optim.Optimizer(learning_rate=1e-4, schedule="constant")
VARIANTS = ("plain", "online", "precomputed")
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def main() -> None:
  """Runs every variant in its own process and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--variant", choices=VARIANTS, help="measure this one here")
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument(
    "--remat", choices=get_args(Remat), default="none", help="see Config"
  )
  args = parser.parse_args()
  if args.variant:
    print(json.dumps(measure(args.variant, args.steps, args.remat)))
    return
  results = {}
  env = os.environ | {"XLA_FLAGS": ONE_THREAD, "JAX_PLATFORMS": "cpu"}
  header = ("CPU s/step", "temporaries", "peak memory", "loss")
  print(f"{'':12}" + "".join(f"{name:>14}" for name in header), flush=True)
  for variant in VARIANTS:
    command = [sys.executable, __file__, "--variant", variant]
    command += ["--steps", str(args.steps), "--remat", args.remat]
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
    results[variant] = r = json.loads(done.stdout.splitlines()[-1])
    print(
      f"{variant:12}{r['seconds']:14.2f}{r['temporaries_mib']:10.0f} MiB"
      f"{r['peak_mib']:10.0f} MiB{r['loss']:14.6f}",
      flush=True,
    )
  losses = [r["loss"] for r in results.values()]
  if max(losses) - min(losses) > 1e-5:
    raise SystemExit(f"the variants disagree: {losses}")
  for variant in VARIANTS[1:]:
    ratio = results["plain"]["seconds"] / results[variant]["seconds"]
    print(f"{variant}: {ratio:.2f} x as fast as plain")


def measure(variant: str, steps: int, remat: Remat) -> dict[str, float]:
  """Seconds, memory and first loss of one variant, in this process."""
  if sys.platform == "linux":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  model = transformer.model(dataclasses.replace(CONFIG, remat=remat))
  init = jax.jit(model.init)
  params, ref = ({"lm": init(jax.random.key(seed))} for seed in (0, 1))
  prepared = {"plain": _plain, "online": _online, "precomputed": _precomputed}[variant]
  run, args = prepared(model, params, ref)
  compiled = run.lower(*args).compile()
  state_, *rest = args
  seconds, first_loss = [], None
  for _ in range(steps):
    start = time.process_time()
    state_, loss = jax.block_until_ready(compiled(state_, *rest))
    seconds.append(time.process_time() - start)
    first_loss = float(loss) if first_loss is None else first_loss
  return {
    "seconds": min(seconds),
    "temporaries_mib": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    "loss": first_loss,
    "parameters": sum(x.size for x in jax.tree.leaves(params)),
  }


def _texts() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  rng = np.random.default_rng(0)
  sizes = (PROMPT, RESPONSE, RESPONSE)
  draw = functools.partial(rng.integers, 1, CONFIG.vocab, dtype=np.int32)
  return [tuple(draw(size) for size in sizes) for _ in range(PAIRS)]


def _batch() -> pack.Batch:
  examples = [
    tokenise.Example(str(n), prompt, completions, Layout.PAIR)
    for n, (prompt, *completions) in enumerate(_texts())
  ]
  return pack.plan(examples, pack.PackSizes(PAIRS), shuffle=False)[0]


def _online(model, params, ref):
  return _trainer(model, params, {"ref": ref}, _batch())


def _precomputed(model, params, ref):
  @jax.jit
  def reference(ref, batch):
    one = jax.tree.map(lambda x: x[0], batch)
    stats = (token_stats.REF_LOGP,)
    return score.score({"ref": model}, {"ref": ref}, stats, one).ref_logp_BKT[None]

  batch = _batch()
  cached = {"ref_logp_BKT": np.asarray(reference(ref, batch))}
  return _trainer(model, params, {}, batch.replace(ref=cached))


def _trainer(model, params, frozen, batch):
  run = step.make_update(
    functools.partial(objectives.dpo, beta=BETA),
    {"policy": model, "ref": model},
    OPTIMIZER,
    steps=100,
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def one(state_, frozen, batch, hparams):
    state_, metrics = run(state_, frozen, batch, hparams)
    return state_, metrics["loss"]

  chain = optim.transform(OPTIMIZER, model.logical_axes())
  start = state.create(params, chain, (), jax.random.key(0))
  return one, (start, frozen, jax.device_put(batch), step.hparams(OPTIMIZER))


def _plain(model, params, ref):
  texts = _texts()
  rows = [np.concatenate([p, y]) for p, *ys in texts for y in ys]
  tokens_RL = jnp.asarray(np.stack(rows))
  chain = optim.transform(OPTIMIZER, model.logical_axes())

  def logp(params, tokens_RL):
    rows = transformer.Rows.plain(tokens_RL, jnp.ones_like(tokens_RL))
    hidden_RLD = model.hidden(params["lm"], rows)[:, PROMPT - 1 : -1]
    logits_RTV = hidden_RLD @ model.head(params["lm"]).T
    logp_RTV = jax.nn.log_softmax(logits_RTV)
    target_RT = tokens_RL[:, PROMPT:, None]
    logp_RT = jnp.take_along_axis(logp_RTV, target_RT, axis=-1)[..., 0]
    return logp_RT.sum(-1).reshape(PAIRS, 2)

  def loss(params, ref, tokens_RL):
    log_ratio_BK = logp(params, tokens_RL) - logp(ref, tokens_RL)
    margin_B = BETA * (log_ratio_BK[:, 0] - log_ratio_BK[:, 1])
    return -jax.nn.log_sigmoid(margin_B).mean()

  @functools.partial(jax.jit, donate_argnums=0)
  def one(state_, ref, tokens_RL):
    params, opt_state = state_
    value, grads = jax.value_and_grad(loss)(params, ref, tokens_RL)
    updates, opt_state = chain.update(grads, opt_state, params)
    rate = OPTIMIZER.learning_rate
    params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
    return (params, opt_state), value

  return one, ((params, chain.init(params)), ref, tokens_RL)


if __name__ == "__main__":
  main()
