"""Runs `xpo demo`: the controlled-sentiment study on synthetic reviews."""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str]) -> int:
  """Runs the demo; returns 1 if one of its checks fails."""
  parser = argparse.ArgumentParser(prog="xpo demo", description=__doc__)
  parser.add_argument(
    "--run-dir", type=Path, help="new directory; default runs/demo-DATE-TIME"
  )
  args = parser.parse_args(argv)
  run_dir = args.run_dir or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
  environment()
  print("xpo demo: controlled sentiment on synthetic reviews", flush=True)
  from xpo_jax.studies.sentiment.settings import SentimentStudy
  from xpo_jax.train import progress, run_directory

  with run_directory.lock_study(run_dir, progress.say):
    return run(SentimentStudy(), run_dir, command="xpo demo")


def environment() -> None:
  """Sets environment variables that JAX reads when it is imported."""
  # On CPU, one run on each of up to four cores.
  flags = os.environ.get("XLA_FLAGS", "")
  if "host_platform_device_count" not in flags:
    cores = min(os.cpu_count() or 1, 4)
    flags = f"{flags} --xla_force_host_platform_device_count={cores}"
    os.environ["XLA_FLAGS"] = flags.strip()
  # Compiled programs are cached on disk: a second demo does not compile.
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", ".cache/jax")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def run(study, run_dir: Path, command: str) -> int:
  """Runs a study, writes its page, prints its tables.

  Args:
    study: the settings.
    run_dir: a new directory, or that of the same study that was killed, which begins
      anew.
    command: command that reproduces it, for the page.

  Returns:
    0, or 1 where a check fails.

  Raises:
    ValueError: the directory exists, of a study that is done or of something else.
  """
  environment()
  clear(study, run_dir)
  import jax

  from xpo_jax.config import yaml_file
  from xpo_jax.data import audit, sealed_files
  from xpo_jax.report import line_chart, run_page
  from xpo_jax.studies import find_recipe
  from xpo_jax.studies.sentiment import findings, sentiment_page, train_methods

  print(f"{jax.device_count()} x {jax.devices()[0].device_kind}: {run_dir}", flush=True)
  data = train_methods.prepare(study)
  run_dir.mkdir(parents=True, exist_ok=True)
  settings = {"study": yaml_file.to_dict(study), **yaml_file.surroundings()}
  sealed_files.write_json(run_dir / find_recipe.STUDY, settings)
  if data.corpus.dropped:
    audit.write_bad_records(data.corpus.dropped, run_dir / "bad_rows.jsonl")
  result = train_methods.run(data, run_dir, lambda line: print(line, flush=True))
  figure = line_chart.svg(sentiment_page.figure(result), standalone=True)
  sealed_files.write_text(run_dir / "frontier.svg", figure)
  sealed_files.write_lines(run_dir / "runs.jsonl", _lines(result))
  written = run_page.write_page(run_dir, sentiment_page.build(result, command))
  for table in (
    sentiment_page.checks_table(result),
    sentiment_page.table(result),
    sentiment_page.claims_table(result),
    sentiment_page.reward_models_table(result),
  ):
    show(table)
  print(f"report: {written}")
  failed = [c.statement for c in findings.checks(result) if not c.holds]
  for statement in failed:
    print(f"DOES NOT HOLD: {statement}")
  return 1 if failed else 0


def clear(study: Any, run_dir: Path) -> None:
  """Removes what a kill left of a study, for it to begin anew.

  Args:
    study: the settings.
    run_dir: of the study.

  Raises:
    ValueError: the directory holds a study that is done, another one, or something
      else.
  """
  from xpo_jax.config import yaml_file
  from xpo_jax.data import sealed_files
  from xpo_jax.report import run_page
  from xpo_jax.studies import find_recipe

  if sealed_files.is_vacant(run_dir):
    return
  path = run_dir / find_recipe.STUDY
  settings = json.loads(json.dumps(yaml_file.to_dict(study)))
  if (
    (run_dir / run_page.HTML).exists()  # written last
    or not path.exists()
    or sealed_files.read_json(path).get("study") != settings
  ):
    raise ValueError(
      f"run directory {run_dir} exists; name another with --run-dir, or remove it"
    )
  print(f"{run_dir}: this study was interrupted; it begins anew", flush=True)
  sealed_files.remove_directory(run_dir)


def _lines(result) -> Iterator[dict[str, Any]]:
  """A line for each run: setting, reward, KL, and both per prompt."""
  from xpo_jax.evaluation import measure_policy

  for trained in result.trained:
    reward_P = measure_policy.per_prompt(trained.draws.reward_PK)
    kl_P = measure_policy.per_prompt(trained.draws.kl_PK)
    yield {
      "method": trained.label,
      "strength": trained.strength,
      "seed": trained.seed,
      "reward": reward_P.mean(),
      "kl": kl_P.mean(),
      "seconds": trained.seconds,
      "reward_P": reward_P.round(6).tolist(),
      "kl_P": kl_P.round(6).tolist(),
    }


def show(table) -> None:
  """Prints a table of the page on the terminal."""
  from rich import box, console
  from rich import table as rich_table

  shown = rich_table.Table(*table.header, box=box.SIMPLE, caption=table.caption)
  for row in table.rows:
    shown.add_row(*(str(cell).replace("**", "") for cell in row))
  screen = console.Console()
  if not screen.is_terminal:
    screen.width = 1000  # no line breaks in a file
  screen.print(shown)
