"""DPO and RLOO on a pretrained chat model: more sentiment, flipped labels less.

Paper: the controlled-sentiment setting of Rafailov et al. 2023 (DPO), arXiv:2305.18290;
  RLOO: Ahmadian et al. 2024, arXiv:2402.14740.
Command: xpo train real_model [policy=DIR]
  python experiments/fetch_smollm2.py smollm2 makes the default policy.
Hardware: 2 CPU cores, half an hour, 11 GB of memory.
Expected: intervals of the change of reward above 0 for both methods, and below 0 with
  flipped labels; otherwise the command fails.
Departs from the paper: the model is a chat model of 135M parameters with LoRA, the
  reward VADER's sentiment of its answer to a question of opinion.
Result: change of reward {DPO | change} by DPO at {DPO | kl} nats, {RLOO | change} by
  RLOO at {RLOO | kl}, {DPO, flipped labels | change} with flipped labels; one seed.
"""

from collections.abc import Mapping
from pathlib import Path

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies.multistage.arm_table import ArmRow
from xpo_jax.studies.real_model import compare, runs
from xpo_jax.studies.real_model.compare import Method, RealModel
from xpo_jax.studies.sentiment.findings import Check

RAISE = (
  Method("DPO", ObjectiveConfig("dpo")),
  Method("RLOO", ObjectiveConfig("rloo")),
)
FLIPPED = Method("DPO, flipped labels", ObjectiveConfig("dpo"), labels="flipped")


def experiment(policy: str = "smollm2") -> RealModel:
  """On the sentiment of its own samples."""
  return RealModel(runs.task(policy))


def arms(settings: RealModel) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return compare.experiments((*RAISE, FLIPPED), settings.task)


def checks(rows: Mapping[str, ArmRow]) -> list[Check]:
  """What the study must show, unless something is broken."""
  return [
    *(compare.raises(rows[one.label]) for one in RAISE),
    compare.lowers(rows[FLIPPED.label]),
  ]


def run(settings: RealModel, run_dir: Path) -> int:
  """Trains and judges three policies; 1 where a check fails."""
  return compare.run(
    settings,
    run_dir,
    (*RAISE, FLIPPED),
    title="A real model: reward of its own samples",
    command=f"xpo train real_model policy={settings.task.policy}",
    checks=checks,
  )
