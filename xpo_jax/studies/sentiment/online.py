"""Trains the study's methods on samples of their own.

Each is a run on rollouts from the study's SFT policy, in a directory of its own within
the study's: its rollouts can be read there, and `xpo report` makes its page.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xpo_jax.config.data import Prompts
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Pretrained, Rollouts
from xpo_jax.config.factories import Configured
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data import records, sealed_files
from xpo_jax.feedback import rules
from xpo_jax.models import hf_checkpoint
from xpo_jax.studies.sentiment.labelled_pairs import Corpus
from xpo_jax.studies.sentiment.settings import OnlineArm, SentimentStudy, TrainedPolicy
from xpo_jax.train import checkpoint, loop, metrics, progress, run_directory
from xpo_jax.types import Params

START = "sft"


def train(
  arm: OnlineArm, data, start: Params, evaluator, run_dir: Path
) -> list[TrainedPolicy]:
  """An arm's policies along its runs, one run for each seed.

  Args:
    arm: the method.
    data: the study, its texts and model (`train_methods.prepare`).
    start: the SFT policy.
    evaluator: samples and rewards policies (`train_methods.PolicyEvaluator`).
    run_dir: of the study; the start and the runs are written to it.
  """
  study, corpus, model, _ = data
  sealed_files.write_directory(
    run_dir / START,
    lambda path: hf_checkpoint.save(
      path, model.config, start, tokenizer=corpus.tokenizer
    ),
  )
  prompts = _prompts(corpus)
  policies = []
  for seed in study.seeds:
    began, directory = time.perf_counter(), run_dir / f"{arm.label}-{seed}"
    experiment = arm_run(arm, study, run_dir / START, seed)
    datasets = {experiment.data.prompts.path: prompts}
    result = loop.train(experiment, directory, datasets=datasets, say=progress.silent)
    if result.stopped:  # this study keeps nothing to go on from
      raise KeyboardInterrupt
    seconds = (time.perf_counter() - began) / len(arm.strengths)
    lines = metrics.read(directory)
    for iteration, params in checkpoint.policies(directory / run_directory.CHECKPOINTS):
      if iteration in arm.strengths:
        draws, curve = evaluator.draws(params, seed), _curve(lines[:iteration])
        policies.append(
          TrainedPolicy(arm.label, iteration, seed, draws, curve, seconds)
        )
  return policies


def arm_run(
  arm: OnlineArm, study: SentimentStudy, start: Path, seed: int
) -> Experiment:
  """An arm's run from the SFT policy, on the prompts of the train split."""
  return Experiment(
    objective=arm.objective,
    data=Rollouts(
      prompts=Prompts("prompts", seed=seed),
      feedback=Feedback(Configured(rules.synthetic_reward)),
      sampling=Sampling(
        completions=arm.completions, max_completion_tokens=study.max_completion_tokens
      ),
      iterations=arm.strengths[-1],
      prompts_per_iteration=arm.prompts_per_iteration,
    ),
    start=Pretrained(str(start), remat="none"),
    optimizer=Optimizer(learning_rate=arm.learning_rate, schedule="constant"),
    loop=Loop(
      checkpoint_every=arm.strengths[0],
      checkpoint_minutes=None,  # every checkpoint is a point
      keep=arm.strengths[-1],
    ),
    mesh=MeshShape(data=1),
    seed=seed,
  )


def _prompts(corpus: Corpus) -> list[records.Prompt]:
  texts = dict.fromkeys(row.prompt for row in corpus.demonstrations["train"])
  return [records.Prompt(f"prompt {i}", text) for i, text in enumerate(texts)]


def _curve(lines: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
  names = set(lines[0]).intersection(*lines)
  return {name: np.array([line[name] for line in lines]) for name in names}
