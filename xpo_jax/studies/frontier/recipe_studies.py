"""Runs recipes of several stages below a study of many recipes, and reads their rows.

Each has a directory of its own, `recipes/NAME`, where it goes on if it was
interrupted. It trains its own stages but the common start, which is copied.
"""

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xpo_jax.config.experiment import Stage
from xpo_jax.data import sealed_files
from xpo_jax.studies import find_recipe
from xpo_jax.studies import task as tasks
from xpo_jax.studies.find_recipe import Recipe
from xpo_jax.studies.multistage import arms
from xpo_jax.studies.multistage.arms import Arms
from xpo_jax.studies.task import Task
from xpo_jax.train import progress, run_directory, stages

RECIPES = "recipes"


def task_of(recipe: Recipe) -> Task | None:
  """The task of a recipe with stages; None where it is something else."""
  task = recipe.run and vars(recipe.experiment).get("task")
  return task if isinstance(task, Task) else None


def run_recipe(name: str, task: Task, run_dir: Path) -> None:
  """Runs a recipe of several stages with the seeds of a study, or the rest of it.

  Args:
    name: of the recipe.
    task: of the study; where the recipe starts from the same, its start is copied.
    run_dir: of the study.
  """
  recipe, directory = find_recipe.load(name), run_dir / RECIPES / name
  own = dataclasses.replace(task_of(recipe), seeds=task.seeds)
  settings = dataclasses.replace(recipe.experiment, task=own)
  results, study_file = directory / arms.RESULTS, directory / find_recipe.STUDY
  before = study_file.read_bytes() if study_file.exists() else None
  arms.open_study(settings, directory, progress.silent)  # the same study, or refused
  if before != study_file.read_bytes():  # widened by seeds
    results.unlink(missing_ok=True)
  if results.exists():
    return
  _copy_start(own, task, run_dir, directory)
  with (directory / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
    recipe.run(settings, directory)


def rows(run_dir: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """`(recipe, row of its results.json)` of every recipe that was run."""
  for file in sorted((run_dir / RECIPES).glob(f"*/{arms.RESULTS}")):
    for row in sealed_files.read_json(file):
      yield file.parent.name, row


def _copy_start(own: Task, task: Task, run_dir: Path, directory: Path) -> None:
  """Copies the study's start into a recipe's store, where it is the recipe's too."""
  start = tasks.start(own)
  if not isinstance(start, Stage) or start != tasks.start(task):
    return
  source, target = (
    stages.directory(start.experiment, Arms(own, path, progress.silent).store, {})
    for path in (run_dir, directory)
  )
  if (source / run_directory.SUMMARY).exists():
    copy = functools.partial(shutil.copytree, source)
    # Unsealed: the files of a run have checksums of their own.
    sealed_files.write_directory(target, copy, sealed=False)
