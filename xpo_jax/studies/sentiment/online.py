"""The study's methods on samples of their own: runs of the online loop.

Each is an ordinary online run from the study's SFT policy, kept whole in the study's
directory: its rollouts can be read there, and `xpo report` makes its page.
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
from xpo_jax.data import records
from xpo_jax.feedback import rules
from xpo_jax.models import hf_checkpoint
from xpo_jax.studies.sentiment.labelled_pairs import Corpus
from xpo_jax.studies.sentiment.settings import OnlineArm, Study, Trained
from xpo_jax.train import checkpoint, loop, metrics, run_directory
from xpo_jax.types import Params

START = "sft"


def train(
  arm: OnlineArm, beginning, start: Params, judged, run_dir: Path
) -> list[Trained]:
  """An arm's policies along its runs, one run for each seed.

  Args:
    arm: the method.
    beginning: the study, its texts and model (`train_methods.prepare`).
    start: the SFT policy.
    judged: samples and rewards a policy (`train_methods.Judged`).
    run_dir: the start and the runs are kept in it.
  """
  study, corpus, model, _ = beginning
  run_directory.write_once(
    run_dir / START,
    lambda path: hf_checkpoint.save(
      path, model.config, start, tokenizer=corpus.tokenizer
    ),
  )
  prompts = _prompts(corpus)
  found = []
  for seed in study.seeds:
    began, where = time.perf_counter(), run_dir / f"{arm.label}-{seed}"
    made = arm_run(arm, study, run_dir / START, seed)
    loop.train(made, where, datasets={made.data.prompts.path: prompts}, say=_quiet)
    seconds = (time.perf_counter() - began) / len(arm.strengths)
    lines = metrics.read(where)
    for iteration, params in checkpoint.policies(where / run_directory.CHECKPOINTS):
      if iteration in arm.strengths:
        draws, curve = judged.draws(params, seed), _curve(lines[:iteration])
        found.append(Trained(arm.label, iteration, seed, draws, curve, seconds))
  return found


def arm_run(arm: OnlineArm, study: Study, start: Path, seed: int) -> Experiment:
  """An arm's run from the SFT policy, on the prompts of the train split."""
  return Experiment(
    objective=arm.objective,
    data=Rollouts(
      prompts=Prompts("prompts", seed=seed),
      feedback=Feedback(Configured(rules.synthetic_reward)),
      sampling=Sampling(
        completions=arm.completions, max_completion_tokens=study.longest
      ),
      iterations=arm.strengths[-1],
      prompts_per_iteration=arm.prompts,
    ),
    start=Pretrained(str(start), remat=False),
    optimizer=Optimizer(learning_rate=arm.learning_rate, schedule="constant"),
    loop=Loop(checkpoint_every=arm.strengths[0], keep=arm.strengths[-1]),
    mesh=MeshShape(data=1),
    seed=seed,
  )


def _prompts(corpus: Corpus) -> list[records.Prompt]:
  texts = dict.fromkeys(row.prompt for row in corpus.demonstrations["train"])
  return [records.Prompt(f"prompt {i}", text) for i, text in enumerate(texts)]


def _curve(lines: Sequence[dict[str, float]]) -> dict[str, np.ndarray]:
  names = set(lines[0]).intersection(*lines)
  return {name: np.array([line[name] for line in lines]) for name in names}


def _quiet(text: str) -> None:
  del text
