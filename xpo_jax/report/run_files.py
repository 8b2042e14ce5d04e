"""Reads the files of a run that its page shows; files not yet written are left out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xpo_jax.config import yaml_file
from xpo_jax.evaluation import evaluate_run
from xpo_jax.train import metrics, run_directory


class RunFiles(NamedTuple):
  """The numbers of a run as plain data.

  Attributes:
    directory: the run.
    config: config.yaml.
    lines: of metrics.jsonl, in order; empty before the first step.
    evaluation: evaluation.json, or None.
  """

  directory: Path
  config: Mapping[str, Any]
  lines: list[dict[str, float]]
  evaluation: dict[str, Any] | None

  @property
  def experiment(self) -> Mapping[str, Any]:
    """The experiment, as in config.yaml."""
    return self.config["experiment"]

  @property
  def has_rollouts(self) -> bool:
    """Whether the run trained on rollouts and has written some."""
    return (self.directory / run_directory.ROLLOUTS).exists()

  @property
  def step_name(self) -> str:
    """Unit of a line of metrics: "step" or "iteration"."""
    return "iteration" if self.has_rollouts else "step"


def read(directory: Path) -> RunFiles:
  """Reads the files of a run.

  Raises:
    ValueError: the directory is not a run.
  """
  directory = Path(directory)
  has_metrics = (directory / metrics.FILE).exists()
  return RunFiles(
    directory=directory,
    config=yaml_file.content(directory),
    lines=metrics.read(directory) if has_metrics else [],
    evaluation=read_json(directory / evaluate_run.FILE),
  )


def read_json(path: Path) -> Any:
  """Reads a JSON file; None where there is none."""
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
