"""The DPO paper's reward-KL frontier, rebuilt: claim, ours, verdict.

Paper: Rafailov et al. 2023, arXiv:2305.18290, Fig. 2 (left): DPO has more reward at
  equal KL than every other method, preferred fine-tuning among them.
Command: python experiments/tables/dpo.py
Hardware: 2 CPU cores.
Expected: DPO above preferred fine-tuning at every matched KL; best of n and the
  ceiling above both.
Last result: 2026-11-22, from `xpo demo`, whose runs these are (this script itself was
  run in miniature only): DPO - preferred fine-tuning 0.126 [0.060, 0.188] at 0.5 nats
  and 0.275 [0.216, 0.346] at 1.3.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from xpo_jax.studies import demo
from xpo_jax.studies.sentiment.settings import Study

METHODS = ("DPO", "Preferred-FT")


def main() -> int:
  """DPO over four betas and preferred fine-tuning, three seeds each."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--run-dir", type=Path, default=Path("runs/tables-dpo"))
  args = parser.parse_args()
  study = Study()
  arms = tuple(arm for arm in study.arms if arm.label in METHODS)
  study = dataclasses.replace(study, arms=arms, online=())
  return demo.run(study, args.run_dir, "python experiments/tables/dpo.py")


if __name__ == "__main__":
  try:
    sys.exit(main())
  except ValueError as error:
    sys.exit(f"{error}")
