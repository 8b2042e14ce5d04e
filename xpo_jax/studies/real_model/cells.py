"""Cells of tables on a chat model: train a method, judge it on held-out prompts.

Each metric has an entry for each held-out prompt, the mean over its samples. Cells of
one process share the start's samples, their rewards and the reference's log-probs; a
run that was interrupted goes on from its last checkpoint, in `STORE`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import tokenise
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits
from xpo_jax.evaluation import measure_policy, sequence_logps
from xpo_jax.evaluation.measure_policy import Draws
from xpo_jax.models import transformer
from xpo_jax.studies.atlas import code_digest, worlds
from xpo_jax.studies.multistage import arms
from xpo_jax.studies.multistage.arms import Arms
from xpo_jax.studies.real_model import runs
from xpo_jax.train import loading, progress

STORE = Path("runs") / "reproduce"
HELD_OUT_PAIRS = 32
# Of pairs of people: shorter than most, so that a step has several.
PAIR_LIMITS = Limits(prompt=128, completion=64)
PAIR_STEPS = 6

Metrics = Mapping[str, Any]


def start(seed: int, *, policy: str) -> Metrics:
  """The start on held-out prompts.

  Args:
    seed: of the samples.
    policy: a Hugging Face directory with a chat template.

  Returns:
    reward, kl (0), length, tokens, and cut, the share that reached the limit: `[P]`.
  """
  return _measures(arms.reference_draws(_study(policy), seed))


def trained(
  seed: int,
  *,
  policy: str,
  objective: str,
  hparams: Mapping[str, Any],
  learning_rate: float,
  labels: runs.Labels = "true",
) -> Metrics:
  """A method on the model's own samples, judged on held-out prompts.

  Args:
    seed: of order, adapters and samples.
    policy: the start, as in `start`.
    objective: its name.
    hparams: of the objective; others have their defaults.
    learning_rate: constant after one step of warm-up.
    labels: see `runs.experiment`.

  Returns:
    As `start`; kl is to the start, nats.
  """
  study = _study(policy, learning_rate)
  config = ObjectiveConfig(objective, **hparams)
  one = runs.experiment(
    config, study.task, seed=seed, labels=labels, store=study.run_dir
  )
  params = runs.train(study, one).policies[seed]
  return _measures(arms.judge(study, params, seed))


def on_pairs(
  seed: int,
  *,
  policy: str,
  pairs: str,
  objective: str,
  hparams: Mapping[str, Any],
  learning_rate: float,
) -> Metrics:
  """A method on pairs of people, judged on held-out pairs.

  Args:
    seed: of order and adapters.
    policy: the start, as in `start`.
    pairs: a file of HH transcripts.
    objective: its name.
    hparams: of the objective; others have their defaults.
    learning_rate: as in `trained`.

  Returns:
    For each held-out pair: margin, the log-ratio of the chosen completion minus that of
    the rejected one, nats; accuracy, 1 where it is above 0; chosen and rejected, the
    log-ratios.
  """
  study = _study(policy, learning_rate)
  config = ObjectiveConfig(objective, **hparams)
  data = Data(
    pairs,
    portion="train",
    reading=Reading(transcripts="messages"),
    limits=PAIR_LIMITS,
    bad_rows="drop",
  )
  base = runs.experiment(config, study.task, seed=seed)
  packed = dataclasses.replace(
    data,
    row_length=2 * study.task.row_length,
    rows_per_step=study.task.rows,
    steps=PAIR_STEPS,
    seed=seed,
  )
  one = experiments.replace(base, data=packed)
  params = runs.train(study, one).policies[seed]
  begin = arms.start(study)
  held_out = dataclasses.replace(data, portion="test")
  rows = loading.load(held_out, held_out, {}).records
  tokenised = tokenise.tokenise_valid(rows, begin.tokenizer, limits=PAIR_LIMITS)
  scored = sequence_logps.score_pairs(
    transformer.model(begin.config),
    params,
    begin.params,
    tokenised.examples[:HELD_OUT_PAIRS],
    batch=study.task.eval_batch,
  )
  ratio_PK = scored["logp_BK"] - scored["ref_logp_BK"]
  margin_P = ratio_PK[:, 0] - ratio_PK[:, 1]
  return {
    "margin": margin_P,
    "accuracy": margin_P > 0,
    "chosen": ratio_PK[:, 0],
    "rejected": ratio_PK[:, 1],
  }


def _study(policy: str, learning_rate: float | None = None) -> Arms:
  """The directory of runs of this code, and their task.

  Raises:
    ValueError: no such model.
  """
  if not Path(policy).is_dir():
    raise ValueError(
      f"{policy} is no directory of a chat model; "
      f"python experiments/fetch_smollm2.py {worlds.SMOLLM2} makes one"
    )
  changes = {} if learning_rate is None else {"learning_rate": learning_rate}
  return Arms(runs.task(policy, **changes), STORE / _code(), progress.silent)


@functools.cache
def _code() -> str:
  return code_digest.digest([__name__])


def _measures(draws: Draws) -> Metrics:
  columns = {
    "reward": draws.reward_PK,
    "kl": draws.kl_PK,
    "length": draws.length_PK,
    "cut": ~draws.ended_PK,
  }
  return {name: measure_policy.per_prompt(x_PK) for name, x_PK in columns.items()}
