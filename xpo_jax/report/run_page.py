"""Writes the page of a run: report.html (self-contained) and report.md.

Reads the run directory alone, so that it also works for a run that is still training,
was interrupted, or was copied from elsewhere.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import yaml

from xpo_jax import scored
from xpo_jax.config import trust, yaml_file
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import audit, sealed_files, token_rows
from xpo_jax.evaluation import agreement, evaluate_run
from xpo_jax.report import (
  agreement_tables,
  diagnostics,
  html,
  rollout_sections,
  run_files,
  training_curves,
)
from xpo_jax.report.run_files import RunFiles
from xpo_jax.testing import toy
from xpo_jax.train import run_directory
from xpo_jax.types import Objective

HTML, MARKDOWN = "report.html", "report.md"
SHOWN_PROMPTS = 8

_MEASURES = {
  "reward": "true reward",
  "kl": "KL to the reference, full vocabulary at each position (nats)",
  "kl_plain": "KL to the reference, mean log-ratio (nats)",
  "win_rate_vs_reference": "win rate against the reference",
  "win_rate_vs_chosen": "win rate against chosen completions",
  "preference_accuracy": "held-out pairs that the log-ratio orders as labelled",
  "length": "length (tokens)",
  "no_eos": "cut before the end",
  "distinct_1": "distinct-1",
  "distinct_2": "distinct-2",
}


def write(run_dir: Path) -> Path:
  """Writes report.html and report.md into a run.

  Args:
    run_dir: a run: config.yaml; metrics.jsonl, data.json, shown.json,
      evaluation.json, agreement.json, samples.jsonl, `rollouts/` and `held_out/` where
      there are any.

  Returns:
    The path of report.html.

  Raises:
    ValueError: the directory is not a run, or a file is damaged.
  """
  return write_page(run_dir, run_page(Path(run_dir)))


def write_page(directory: Path, content: html.Page) -> Path:
  """Writes a page as HTML and Markdown; returns the path of the HTML."""
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  sealed_files.write_text(directory / MARKDOWN, html.markdown(content))
  path = directory / HTML
  sealed_files.write_text(path, html.html(content))
  return path


def run_page(run_dir: Path) -> html.Page:
  """Builds the page of one run; see `write`."""
  run = run_files.read(run_dir)
  # Each returns the sections on files that the run has written, or none.
  makers = (
    _diagnoses,
    _evaluation,
    _agreement,
    rollout_sections.sections,
    _curves,
    _samples,
    _data,
    _reproduce,
  )
  name = run.experiment["objective"]["name"]
  return html.Page(
    title=f"{name}: {run.directory.resolve().name}",
    lead=_lead(run),
    sections=[section for make in makers for section in make(run)],
  )


def first_loss(objective: Objective) -> float | None:
  """The loss at policy = reference where it is the same for all data, or None.

  ln 2 for DPO. Computed by evaluating the objective on two random records in which the
  policy equals the reference: a loss that depends on the data differs between them.
  """
  completions = objective.layout.completions or 3
  losses = []
  for seed, prompts in ((0, 4), (1, 5)):
    record = toy.scored(completions, B=prompts, seed=seed, policy_equals_ref=True)
    key = jax.random.key(seed)
    losses.append(float(scored.evaluate(objective, record, objective.init(), key).loss))
  return losses[0] if abs(losses[0] - losses[1]) < 1e-6 else None


def _first_loss(objective: Mapping[str, Any]) -> tuple[float | None, str]:
  """The fixed first loss, and the reason where the objective is not built."""
  if not all(named.is_objective for named in trust.names(objective, "")):
    return None, "it is made of more than objectives, and a report builds nothing else"
  try:
    config = yaml_file.from_dict(ObjectiveConfig, objective, "experiment.objective")
    return first_loss(config.build()), ""
  except (ValueError, ImportError) as error:
    # A hyperparameter of another version, or a module that was removed.
    return None, str(error)


def _lead(run: RunFiles) -> str:
  objective = run.experiment["objective"]
  hparams = ", ".join(f"{k} = {v}" for k, v in objective.items() if k != "name")
  steps = f"no {run.step_name} yet"
  if run.lines:
    steps = f"{int(run.lines[-1]['step'])} {run.step_name}s"
  note = f" {run.left_out}." if run.left_out else ""
  return f"`{objective['name']}({hparams})`, {steps}.{note}"


def _diagnoses(run: RunFiles) -> list[html.Section]:
  expected, problem = _first_loss(run.experiment["objective"])
  diagnoses = diagnostics.diagnose(
    run.lines,
    run.evaluation,
    expected,
    diagnostics.ignored_metrics(run.experiment),
  )
  blocks = [
    html.Callout(
      diagnosis.level,
      diagnosis.name,
      "\n\n".join(text for text in (diagnosis.seen, diagnosis.meaning) if text)
      + (f"\n\n**What helps:** {diagnosis.remedy}" if diagnosis.remedy else ""),
    )
    for diagnosis in diagnoses
    if diagnosis.level != diagnostics.GOOD
  ]
  good = [f"**{d.name}:** {d.seen}" for d in diagnoses if d.level == diagnostics.GOOD]
  if good:
    blocks.append(html.Callout("good", "Looked for, and sound", "\n\n".join(good)))
  if problem:
    text = f"The objective could not be built here: {problem}"
    blocks.append(html.Callout("note", "First loss not checked", text))
  if not blocks:
    text = f"{len(run.lines)} lines of metrics are too few."
    blocks.append(html.Callout("note", "No diagnosis yet", text))
  return [html.Section("Diagnoses", blocks)]


def _evaluation(run: RunFiles) -> list[html.Section]:
  if not run.evaluation:
    return []
  evaluation = run.evaluation
  policy, reference = evaluation["policy"], evaluation["reference"]
  titles = _MEASURES
  if "judge" in evaluation["about"]:  # may be the feedback of training
    titles = _MEASURES | {"reward": "reward by the judge"}
  names = [name for name in _MEASURES if name in policy]
  names += [name for name in policy if name not in _MEASURES]
  rows = [
    [
      titles.get(name, name),
      _interval(policy[name]),
      _interval(reference.get(name)),
      _interval(evaluation["differences"].get(name), signed=True),
    ]
    for name in names
  ]
  about = ", ".join(f"{k} {v}" for k, v in evaluation["about"].items())
  caption = (
    "Mean with its 95 % bootstrap interval over prompts; differences are paired by "
    "prompt. Distinct-n has none: compare it between equal numbers of samples. "
    f"Measured on: {about}."
  )
  table = html.Table(("", "policy", "reference", "difference"), rows, caption)
  return [html.Section("Evaluation", [table])]


def _interval(measure: Mapping[str, Any] | None, signed: bool = False) -> str:
  if measure is None:
    return ""
  sign = "+" if signed else ""
  mean = f"{measure['mean']:{sign}.3f}"
  if measure["low"] is None:
    return mean
  return f"{mean} [{measure['low']:{sign}.3f}, {measure['high']:{sign}.3f}]"


def _agreement(run: RunFiles) -> list[html.Section]:
  content = run_files.read_json(run.directory / agreement.FILE)
  if not content:
    return []
  tables = agreement_tables.tables(content)
  return [html.Section("Agreement with held-out labels", tables)]


def _curves(run: RunFiles) -> list[html.Section]:
  if not run.lines:
    return []
  figures = training_curves.figures(run.lines, run.step_name)
  return [html.Section("Curves", [html.Figures(figures)])]


def _samples(run: RunFiles) -> list[html.Section]:
  path = run.directory / evaluate_run.SAMPLES
  if not path.exists():
    return []
  lines = sealed_files.read_lines(path)
  rows, models = [], []
  for line in lines[:SHOWN_PROMPTS]:
    first: dict[str, str] = {}
    for answer in line["answers"]:
      first.setdefault(answer["model"], _answer(answer))
    models = models or list(first)
    chosen = [line["chosen"]] if "chosen" in line else []
    texts = [line["prompt"], *chosen, *(first[model] for model in models)]
    rows.append(list(map(html.Verbatim, texts)))
  header = ["prompt", *(["chosen"] if len(rows[0]) > 1 + len(models) else []), *models]
  caption = (
    f"The first sample of each on the first {len(rows)} of {len(lines)} prompts, not "
    f"selected; all of them are in `{path.name}`."
  )
  return [html.Section("Samples", [html.Table(header, rows, caption)])]


def _answer(answer: Mapping[str, Any]) -> str:
  end = "" if answer["ended"] else " …"
  reward = f" (reward {answer['reward']:.2f})" if "reward" in answer else ""
  return f"{answer['text'].strip()}{end}{reward}"


def _data(run: RunFiles) -> list[html.Section]:
  counts = run_files.read_json(run.directory / run_directory.COUNTS)
  if not counts:
    return []
  summary = run_files.read_json(run.directory / run_directory.SUMMARY) or {}
  shown = run_files.read_json(run.directory / run_directory.SHOWN)
  sizes = {name: value for name, value in summary.items() if name != "final"}
  notes = [[html.Verbatim(note)] for note in audit.notes(counts)]
  facts = {name: value for name, value in counts.items() if name != "first_dropped"}
  blocks = [html.Table((), [list(leaf) for leaf in _leaves(facts | sizes)])]
  if notes:
    blocks.append(html.Table(("what to know of the data",), notes))
  if shown:
    text = (
      "The first rows as the model sees them, a line for each prompt and completion: "
      "blue is prompt, green carries loss, grey is a completion without loss. What is "
      "green was read back from the indices that training gathers by."
    )
    blocks.append(html.Text(text))
    # A list of rows in runs of older versions.
    rows = shown["rows"] if isinstance(shown, dict) else shown
    for i, row in enumerate(rows):
      tokens = [token_rows.TokenInfo(**token) for token in row]
      blocks.append(html.Tokens(f"row {i}", list(token_rows.pieces(tokens))))
  return [html.Section("Data", blocks)]


def _leaves(tree: Mapping[str, Any], prefix: str = ""):
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f"{prefix}{name}: ")
    elif isinstance(value, list):
      yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
    else:
      yield f"{prefix}{name}".replace("_", " "), value


def _reproduce(run: RunFiles) -> list[html.Section]:
  commands = (
    f"xpo train {run.directory}/{yaml_file.FILE} --run-dir NEW   # the same run again\n"
    f"xpo resume {run.directory}                    # go on from the last checkpoint"
  )
  around = {k: v for k, v in run.config.items() if k != "experiment"}
  text = yaml.safe_dump(run.experiment, sort_keys=False, allow_unicode=True)
  blocks = [
    html.Code(commands),
    html.Table((), [[name, value] for name, value in _leaves(around)]),
    html.Code(text, f"the whole experiment ({yaml_file.FILE})"),
  ]
  return [html.Section("Reproduce", blocks)]
