"""Reads the files of a run that its page shows; files not yet written are left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xpo_jax.config import yaml_file
from xpo_jax.data import sealed_files
from xpo_jax.evaluation import evaluate_run
from xpo_jax.train import metrics, run_directory


class RunFiles(NamedTuple):
  """The numbers of a run as plain data.

  Attributes:
    directory: the run.
    config: config.yaml.
    lines: of metrics.jsonl, in order; empty before the first step.
    evaluation: evaluation.json, or None.
    left_out: what of metrics.jsonl is missing, or "".
  """

  directory: Path
  config: Mapping[str, Any]
  lines: list[dict[str, float]]
  evaluation: dict[str, Any] | None
  left_out: str = ""

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
    ValueError: the directory is not a run, or a file is damaged.
  """
  directory = Path(directory)
  has_metrics = (directory / metrics.FILE).exists()
  return RunFiles(
    directory=directory,
    config=yaml_file.content(directory),
    lines=metrics.read(directory) if has_metrics else [],
    evaluation=read_json(directory / evaluate_run.FILE),
    left_out=metrics.left_out(directory) if has_metrics else "",
  )


def read_json(path: Path) -> Any:
  """Reads a JSON file; None where there is none."""
  return sealed_files.read_json(path) if path.exists() else None
