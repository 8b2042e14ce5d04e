"""Plants a failure in each table's method and shows whether its verdicts change.

A failure turns the sign of an objective's loss or removes the term that distinguishes
it: a function wrapped around the objective, or around the run or the rule that is
tested. The cells that it touches run again; the others are the committed ones. A table
whose predictions all keep their verdicts does not tell the method from its failure.

Command: python experiments/bench/plant_failures.py TABLE ... | --all [--seeds N]

Rows are written after each table to `planted_failures.json` beside this file, where
those of other tables are kept, and all of them to `planted_failures.md`.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from xpo_jax import objectives
from xpo_jax.data import sealed_files
from xpo_jax.ops import ai_labels, selection
from xpo_jax.report import html
from xpo_jax.studies.atlas import cells, find_tables
from xpo_jax.studies.atlas import table as tables
from xpo_jax.studies.exact import (
  labels,
  merging,
  online,
  pretraining,
  sentences,
)
from xpo_jax.types import Objective

RESULTS = Path(__file__).parents[1] / "results"
SUMMARY = Path(__file__).with_name("planted_failures.json")


class Failure(NamedTuple):
  """What is broken.

  Attributes:
    what: in words.
    target: what is replaced, "module.name".
    replacement: in its place.
    objective: whose cells run again; None: all.
  """

  what: str
  target: str
  replacement: Callable[..., Any]
  objective: str | None = None


def negated(name: str) -> Failure:
  """The sign of an objective's loss turned."""
  factory = objectives.get(name)

  def make(**hparams) -> Objective:
    objective = factory(**hparams)

    def loss(scored, aux):
      found = objective.loss(scored, aux)
      terms = {n: mean.replace(total=-mean.total) for n, mean in found.terms.items()}
      return found.replace(terms=terms, per_example_B=None)

    return objective._replace(loss=loss)

  return Failure(f"sign of {name} turned", _home(name), make, name)


def instead(name: str, what: str, make: Callable[..., Objective]) -> Failure:
  """An objective without the term that distinguishes it."""
  return Failure(what, _home(name), make, name)


def _home(name: str) -> str:
  return f"xpo_jax.objectives.{objectives.HOME[name]}.{name}"


def _get(name: str, **fixed) -> Callable[..., Objective]:
  """A factory, some hyperparameters fixed whatever is asked."""
  return functools.partial(_build, objectives.get(name), fixed)


def _build(factory: Callable, fixed: Mapping, **hparams) -> Objective:
  return factory(**(hparams | fixed))


def _likelihood(**hparams) -> Objective:
  """The likelihood of the chosen completions, whatever the hyperparameters."""
  del hparams
  return objectives.sft()


def _turned_links(**hparams) -> Objective:
  return (_GPO if hparams["link"] == "logistic" else _NEGATED_GPO)(**hparams)


def _with(run: Callable, **fixed) -> Callable:
  """A cell's function, some settings fixed whatever the table says."""

  @functools.wraps(run)
  def fixed_run(seed, **settings):
    return run(seed, **(settings | fixed))

  return fixed_run


def _one_order(shown, swapped, original=ai_labels.debiased):
  del swapped
  return original(shown, shown[:, ::-1])


def _without_reward(reward_K, num, beta, key, original=selection.rejection_sample):
  return original(0 * reward_K, num, beta, key)


@functools.wraps(pretraining.mix)
def _penalised(seed, *, gamma, hparams, original=pretraining.mix, **settings):
  stronger = {"beta": hparams["beta"] + gamma}
  return original(seed, gamma=0.0, hparams=stronger, **settings)


_GPO, _NEGATED_GPO = objectives.get("gpo"), negated("gpo").replacement


FAILURES = {
  "ahmadian2024_noise": negated("rloo"),
  "ahmadian2024_variance": instead(
    "rloo", "no baseline of the prompt's own", _get("reinforce")
  ),
  "azar2023_deterministic": instead(
    "ipo", "logistic in place of the square", _get("dpo")
  ),
  "bai2022_clamped": Failure(
    "labels not clipped", "xpo_jax.ops.ai_labels.clamped", lambda label_B2: label_B2
  ),
  "bai2022_sqrt_kl": negated("rloo"),
  "chen2024_likelihood": instead("dpo", "no rejected completions", _likelihood),
  "chowdhury2024_flips": instead(
    "robust_dpo", "no debiasing", _get("robust_dpo", flip_rate=0.0)
  ),
  "dong2024_online": Failure(
    "samples of the reference alone",
    "xpo_jax.studies.exact.online.train",
    _with(online.train, sampler="reference"),
  ),
  "doosterlinck2024_anchors": instead(
    "apo_down", "no rejected completions", _likelihood
  ),
  "duan2024_anchors": negated("d2o"),
  "ethayarajh2024_imbalance": instead(
    "kto", "weights ignored", _get("kto", desirable_weight=1.0)
  ),
  "hong2024_one_stage": instead(
    "orpo", "no odds ratio", _get("orpo", weight=0.0)
  )._replace(objective=None),  # its cells name it within a stage
  "kim2024_stages": negated("dpo"),
  "lee2023_position": Failure(
    "one order twice", "xpo_jax.ops.ai_labels.debiased", _one_order
  ),
  "li2023_greedy": instead("remax", "no greedy baseline", _get("reinforce")),
  "liu2023_rejection": Failure(
    "reward ignored", "xpo_jax.ops.selection.rejection_sample", _without_reward
  ),
  "liu2024_lists": negated("lipo"),
  "liu2025_difficulty": instead(
    "dr_grpo", "division by the standard deviation", _get("grpo")
  ),
  "meng2024_length": Failure(
    "sum in place of the average",
    "xpo_jax.studies.exact.sentences.pairs",
    _with(sentences.pairs, per_token=False),
  ),
  "munos2023_last_iterate": negated("nash_md"),
  "ouyang2022_ptx": Failure(
    "KL penalty in place of pretraining data",
    "xpo_jax.studies.exact.pretraining.mix",
    _penalised,
  ),
  "pal2024_chosen": instead("dpop", "no penalty", _get("dpop", penalty=0.0)),
  "park2024_length": instead(
    "r_dpo", "no length in the loss", _get("r_dpo", alpha=0.0)
  ),
  "pentyala2024_merge": Failure(
    "no L1 penalty",
    "xpo_jax.studies.exact.merging.train",
    _with(merging.train, sparsity=0.0),
  ),
  "rafailov2023_optimum": negated("dpo"),
  "rafailov2024_credit": negated("token_dpo"),
  "richemond2024_fixed_point": Failure(
    "value removed",
    "xpo_jax.studies.exact.labels.regression",
    _with(labels.regression, value=False),
  ),
  "rosset2024_monotone": negated("dno"),
  "song2023_lists": negated("pro"),
  "tang2024_links": instead(
    "gpo", "sign of all links but the logistic turned", _turned_links
  ),
  "wang2023_diversity": instead(
    "f_dpo", "reverse KL for all", _get("f_dpo", divergence="reverse_kl")
  ),
  "wu2024_dynamic_beta": negated("beta_dpo"),
  "wu2024_nash": negated("sppo"),
  "xu2023_repetition": negated("pairwise_cringe"),
  "xu2024_gold": instead("cpo", "no preference", _get("cpo", beta=1e-9)),
  "yuan2023_best_of_n": negated("rrhf"),
  "yuan2024_self_reward": negated("dpo"),
  "zeng2024_sequential_kl": negated("tdpo2"),
  "zhang2024_collapse": negated("npo"),
  "zhao2023_sample_rank": negated("slic"),
}


def planted(name: str, seeds: int | None = None) -> dict[str, Any]:
  """Runs a table with its failure; returns the verdicts before and after.

  Args:
    name: of the table.
    seeds: the first ones alone, before and after; None: all of the table's.

  Raises:
    ValueError: the committed cells are not all of the table's.
  """
  failure = FAILURES[name]
  lines = {
    cells.identity(line): line for line in cells.read(RESULTS / name / cells.FILE)
  }
  with mock.patch(failure.target, failure.replacement):
    # Loaded here: its arms hold the run that is patched.
    table = find_tables.load(find_tables.files()[name])
    table = dataclasses.replace(table, seeds=seeds or table.seeds)
    before = tables.judge(table, cells.results(table, lines.values()))
    for arm, row in zip(table.arms, table.cells(), strict=True):
      if failure.objective in (None, arm.settings.get("objective")):
        for cell in row:
          key, metrics = cells.identity(cell), cell.run(cell.seed, **cell.settings)
          plain = {name: np.asarray(x).tolist() for name, x in metrics.items()}
          lines[key] = lines[key] | {"metrics": plain}
  after = tables.judge(table, cells.results(table, lines.values()))
  return {
    "table": name,
    "planted": failure.what,
    "seeds": table.seeds,
    "before": tables.verdict(before).value,
    "after": tables.verdict(after).value,
    "predictions": [
      {"text": a.text, "before": a.verdict.value, "after": b.verdict.value}
      for a, b in zip(before, after, strict=True)
    ],
  }


def write(row: Mapping[str, Any]) -> None:
  """Puts a table's row into the summary and writes its page."""
  rows = json.loads(SUMMARY.read_text(encoding="utf-8")) if SUMMARY.exists() else []
  rows = [one for one in rows if one["table"] != row["table"]] + [row]
  rows.sort(key=lambda one: one["table"])
  sealed_files.write_text(SUMMARY, json.dumps(rows, indent=1) + "\n")
  sealed_files.write_text(SUMMARY.with_suffix(".md"), page(rows))


def page(rows: Sequence[Mapping[str, Any]]) -> str:
  """The summary as Markdown."""
  table = html.Table(
    ["table", "planted", "seeds", "verdict before", "after", "predictions changed"],
    [
      [
        *(row[key] for key in ("table", "planted", "seeds", "before", "after")),
        f"{len(_changed(row))} of {len(row['predictions'])}",
      ]
      for row in rows
    ],
  )
  changed = sum(row["before"] != row["after"] for row in rows)
  seen = sum(bool(_changed(row)) for row in rows)
  lead = (
    f"The verdict changed in {changed} of {len(rows)} tables, that of a prediction "
  )
  lead += f"in {seen}. Made by\n`python experiments/bench/plant_failures.py --all`."
  sections = [html.Section("Tables", [table])]
  return html.markdown(html.Page("Planted failures", lead, sections))


def _changed(row: Mapping[str, Any]) -> list[Mapping[str, str]]:
  return [one for one in row["predictions"] if one["before"] != one["after"]]


def main() -> int:
  """Prints a line for each table; 1 where all predictions keep theirs."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("tables", nargs="*", metavar="TABLE")
  parser.add_argument("--all", action="store_true", help="every table")
  parser.add_argument("--seeds", type=int, help="the first ones alone; write nothing")
  args = parser.parse_args()
  known = find_tables.files()
  unplanted, gone = (
    sorted(set(known) - set(FAILURES)),
    sorted(set(FAILURES) - set(known)),
  )
  if unplanted or gone:
    raise SystemExit(f"no failure is planted in {unplanted}; no such table: {gone}")
  unknown = sorted(set(args.tables) - set(known))
  if bool(args.tables) == args.all or unknown:
    raise SystemExit(f"give TABLE ..., or --all; unknown: {unknown}; known: {[*known]}")
  stay = 0
  for name in args.tables or known:
    row = planted(name, args.seeds)
    print(json.dumps(row), flush=True)
    stay += not _changed(row)
    if args.seeds is None:
      write(row)
  return int(stay > 0)


if __name__ == "__main__":
  sys.exit(main())
