"""Ten methods on a pretrained chat model: reward, KL and length on its own samples.

Paper: the controlled-sentiment setting of Rafailov et al. 2023 (DPO), arXiv:2305.18290,
  on a chat model of 135M parameters with LoRA; offline methods on one set of pairs,
  online methods on fresh samples, in place of Guo et al. 2024 (OAIF), arXiv:2402.04792.
Command: xpo train real_methods [policy=DIR]
  python experiments/fetch_smollm2.py smollm2 makes the default policy. The same command
  goes on with an interrupted run.
Hardware: 2 CPU cores; not run.
Expected: every method raises the reward; methods with a length term or a tie by token
  stay shorter or nearer to the start than DPO at the same steps.
Departs from the papers: one epoch on about 70 pairs, or five updates; beta and weights
  are the papers' defaults and not tuned.
Result: not run.
"""

from pathlib import Path

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies.real_model import compare, runs
from xpo_jax.studies.real_model.compare import Method, RealModel

METHODS = (
  Method("DPO", ObjectiveConfig("dpo")),
  Method("IPO", ObjectiveConfig("ipo")),
  Method("SimPO", ObjectiveConfig("simpo")),
  Method("KTO", ObjectiveConfig("kto")),
  Method("ORPO", ObjectiveConfig("orpo")),
  Method("R-DPO", ObjectiveConfig("r_dpo")),
  Method("TDPO2", ObjectiveConfig("tdpo2")),
  Method("RLOO", ObjectiveConfig("rloo")),
  Method("GRPO", ObjectiveConfig("grpo")),
  Method("online DPO", ObjectiveConfig("online_dpo")),
)


def experiment(policy: str = "smollm2") -> RealModel:
  """On the sentiment of its own samples."""
  return RealModel(runs.task(policy))


def arms(settings: RealModel) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return compare.experiments(METHODS, settings.task)


def run(settings: RealModel, run_dir: Path) -> int:
  """Trains and judges every method."""
  return compare.run(
    settings,
    run_dir,
    METHODS,
    title="Ten methods on a real model",
    command=f"xpo train real_methods policy={settings.task.policy}",
  )
