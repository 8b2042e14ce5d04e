"""How far a sampler that is not the policy turns the gradient of an iteration.

    python experiments/bench/sampler_mismatch.py [--only grpo] [--draws 96] [--train]

The trainer's own iteration on synthetic reviews, from the SFT policy: prompts, samples,
rewards, scored statistics, loss; what it would hand to the optimiser is recorded and no
step is taken. Each draw is an iteration with prompts and samples of its own. Samplers:

  the policy   nothing planted
  hotter       half of each prompt's completions at temperature 2
  bfloat16     the sampler's weights rounded to bfloat16

and what is done about it: nothing, token ratios capped at 2 (Yao et al.), sequence
ratios without a cap. Columns, 95 % by bootstrap of draws: `along`, the mean gradient's
projection on that of the policy's own samples (1: the same); `away`, the norm of the
difference of the two means as a fraction of the latter's, paired by the draw's prompts
and random numbers: the bias, 0 where the interval reaches 0. `--train` trains to the
end instead, with and without weights, and prints held-out rewards.

Needs no accelerator; some ten minutes of one core for each objective.
"""

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.flatten_util
import numpy as np

from xpo_jax.config import experiment as experiments
from xpo_jax.config.experiment import Experiment, Pretrained
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import SamplerCorrection
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task
from xpo_jax.train import loop, metrics, rollouts_program, run_directory, step
from xpo_jax.train.loading import Inputs
from xpo_jax.train.rollouts_program import Parts

TASK = Task()
OBJECTIVES = {
  "rloo": ObjectiveConfig("rloo", beta=0.05),
  "grpo": ObjectiveConfig("grpo"),
  "ppo": ObjectiveConfig("ppo", beta=0.05),
}
SAMPLERS = {
  "the policy": {},
  "hotter": {"exploration_temperature": 2.0},
  "bfloat16": {"weights_dtype": "bfloat16"},
}
CORRECTIONS = {
  "none": None,
  "token, cap 2": SamplerCorrection(cap=2.0),
  "sequence, no cap": SamplerCorrection(cap=math.inf, level="sequence"),
}
RESAMPLES = 2000


def run_of(objective: str, sampler: str, correction: str, policy: Path) -> Experiment:
  """A run on rollouts from a policy: one update of 16 prompts x 8 an iteration."""
  run = tasks.on_rollouts(
    OBJECTIVES[objective], dataclasses.replace(TASK, policy=str(policy))
  )
  sampling = dataclasses.replace(run.data.sampling, completions=8, **SAMPLERS[sampler])
  return experiments.replace(
    run,
    sampling=sampling,
    prompts_per_iteration=16,
    sampler_correction=CORRECTIONS[correction],
    allow_off_policy=sampler != "the policy",
    start=Pretrained(str(policy), remat="none"),
  )


def gradient_step(parts: Parts) -> step.Step:
  """A step that returns the gradient in place of the new parameters."""
  data = parts.experiment.data
  build = rollouts_program.at_temperature(
    parts.experiment.objective.build, data.temperature
  )
  if data.sampler_correction is not None:
    build = rollouts_program.corrected(build, data.sampler_correction)
  models = {"policy": parts.model, "ref": parts.model}

  @jax.jit
  def take(train, frozen, batch, hparams, aux_batches=None):
    del aux_batches
    objective = build(**hparams["objective"])
    grads, means, _ = step.gradient(
      objective,
      step.scorer(objective, models, frozen, None),
      train.params,
      batch,
      train.method_state,
      train.key,
    )
    return train.replace(params=grads), step.divide(means)

  return take


def gradients(run: Experiment, draws: int, work: Path) -> np.ndarray:
  """Gradients of the decoder's weights in iterations from one state, `[draws, P]`.

  Args:
    run: the experiment.
    draws: number of iterations.
    work: directory of the samples: read where they are, written where not.
  """
  work.mkdir(parents=True, exist_ok=True)
  parts, first = rollouts_program.assemble(run, work, Inputs(), {}, lambda line: None)
  parts = parts._replace(take=gradient_step(parts), held_out=None)
  rows = []
  for draw in range(draws):
    after, _ = rollouts_program.iterate(parts, first, draw)
    flat, _ = jax.flatten_util.ravel_pytree(after.train.params["lm"])
    rows.append(np.asarray(flat, np.float64))
  return np.stack(rows)


def squares(a_NP: np.ndarray, b_NP: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
  """E a . E b in each resample, `[R]`: without products of a draw with itself."""
  products_NN = a_NP @ b_NP.T
  total = np.einsum("rn,nm,rm->r", counts_RN, products_NN, counts_RN, optimize=True)
  total = total - counts_RN**2 @ np.diag(products_NN)
  return total / (counts_RN.sum(1) ** 2 - (counts_RN**2).sum(1))


def resampled(draws: int, rng: np.random.Generator) -> np.ndarray:
  """Counts of each draw: once each, then in `RESAMPLES` bootstrap resamples."""
  chance = np.full(draws, 1 / draws)
  counts = rng.multinomial(draws, chance, size=RESAMPLES)
  return np.concatenate([np.ones((1, draws), int), counts])


def interval(values: np.ndarray) -> str:
  """The first value, of all draws, and the 95 % interval of the others."""
  low, high = np.percentile(values[1:], [2.5, 97.5])
  return f"{values[0]:.3f} [{low:.3f}, {high:.3f}]"


def compare(names: Sequence[str], draws: int, work: Path, policy: Path) -> None:
  """Prints the table of gradients."""
  print(f"{'':6} {'sampler':11} {'weights':17} {'along':22} away")
  counts_RN = resampled(draws, np.random.default_rng(0))
  for name in names:
    wanted_NP = gradients(
      run_of(name, "the policy", "none", policy), draws, work / "on"
    )
    norm = squares(wanted_NP, wanted_NP, counts_RN)
    for sampler in list(SAMPLERS)[1:]:
      for correction in CORRECTIONS:
        run = run_of(name, sampler, correction, policy)
        found_NP = gradients(run, draws, work / sampler)
        along = squares(found_NP, wanted_NP, counts_RN) / norm
        away_NP = found_NP - wanted_NP
        away = np.sqrt(np.maximum(squares(away_NP, away_NP, counts_RN), 0) / norm)
        numbers = f"{interval(along):22} {interval(away)}"
        print(f"{name:6} {sampler:11} {correction:17} {numbers}", flush=True)


def train(names: Sequence[str], work: Path, policy: Path) -> None:
  """Prints held-out reward after training, a line an objective and sampler."""
  arms = [("the policy", "none"), ("hotter", "none"), ("hotter", "token, cap 2")]
  arms += [("bfloat16", "none"), ("bfloat16", "token, cap 2")]
  print(f"{'':6} {'sampler':11} {'weights':17} held-out reward of seeds; KL, nats")
  for name in names:
    for sampler, correction in arms:
      rewards, kls = [], []
      for seed in TASK.seeds:
        run = run_of(name, sampler, correction, policy)
        run = experiments.replace(run, seed=seed, iterations=40)
        run_dir = work / f"{name}-{sampler}-{correction}-{seed}".replace(" ", "_")
        loop.train(run, run_dir, say=lambda line: None)
        last = metrics.read(run_dir)[-1]
        rewards.append(last["eval/reward"])
        kls.append(last["eval/kl"])
      shown = " ".join(f"{x:.3f}" for x in rewards)
      print(f"{name:6} {sampler:11} {correction:17} {shown}; {np.mean(kls):.2f}")


def main() -> None:
  """Trains the SFT policy, then prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
  parser.add_argument("--draws", type=int, default=96, help="iterations of each arm")
  parser.add_argument("--train", action="store_true", help="train to the end instead")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    work = Path(folder)
    loop.train(tasks.sft(TASK), work / "sft", say=lambda line: None)
    policy = work / "sft" / run_directory.POLICY
    if options.train:
      train(options.only, work, policy)
    else:
      compare(options.only, options.draws, work, policy)


if __name__ == "__main__":
  main()
