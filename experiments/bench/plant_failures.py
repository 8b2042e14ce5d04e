"""Plants a failure in each table's method and shows that the verdict changes.

A failure turns the sign of an objective's loss or removes the term that distinguishes
it. The cells that it touches run again; the others are the committed ones. A table
whose verdict stays is one that cannot fail.

Command: python experiments/bench/plant_failures.py [TABLE ...] [--out FILE]
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from xpo_jax import objectives
from xpo_jax.ops import ai_labels, selection
from xpo_jax.studies.atlas import cells, find_tables, pages
from xpo_jax.studies.atlas import table as tables
from xpo_jax.studies.atlas.table import Results
from xpo_jax.studies.exact import labels, online
from xpo_jax.types import Objective

RESULTS = Path(__file__).parents[1] / "results"


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


def _turned_links(**hparams) -> Objective:
  return (_GPO if hparams["link"] == "logistic" else _NEGATED_GPO)(**hparams)


def _with(run: Callable, **fixed) -> Callable:
  """A cell's function, some settings fixed whatever the table says."""
  return lambda seed, **settings: run(seed, **(settings | fixed))


def _one_order(shown, swapped, original=ai_labels.debiased):
  del swapped
  return original(shown, shown[:, ::-1])


def _without_reward(reward_K, num, beta, key, original=selection.rejection_sample):
  return original(0 * reward_K, num, beta, key)


_GPO, _NEGATED_GPO = objectives.get("gpo"), negated("gpo").replacement


FAILURES = {
  "ahmadian2024_noise": instead(
    "rloo", "the best sample alone", lambda **_: objectives.raft()
  ),
  "ahmadian2024_variance": instead(
    "rloo", "no baseline of the prompt's own", _get("reinforce")
  ),
  "azar2023_deterministic": instead(
    "ipo", "logistic in place of the square", _get("dpo")
  ),
  "bai2022_sqrt_kl": negated("rloo"),
  "chen2024_likelihood": instead("nca", "relative rewards alone", _get("dpo")),
  "chowdhury2024_flips": instead(
    "robust_dpo", "no debiasing", _get("robust_dpo", flip_rate=0.0)
  ),
  "dong2024_online": Failure(
    "samples of the reference alone",
    "xpo_jax.studies.exact.online.train",
    _with(online.train, sampler="reference"),
  ),
  "doosterlinck2024_anchors": instead(
    "apo_zero", "APO-down in place of APO-zero", _get("apo_down")
  ),
  "ethayarajh2024_imbalance": instead(
    "kto", "weights ignored", _get("kto", desirable_weight=1.0)
  ),
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
  "munos2023_last_iterate": negated("nash_md"),
  "pal2024_chosen": instead("dpop", "no penalty", _get("dpop", penalty=0.0)),
  "park2024_length": instead(
    "r_dpo", "no length in the loss", _get("r_dpo", alpha=0.0)
  ),
  "rafailov2023_optimum": negated("dpo"),
  "rafailov2024_credit": negated("token_dpo"),
  "richemond2024_fixed_point": Failure(
    "value removed",
    "xpo_jax.studies.exact.labels.regression",
    _with(labels.regression, value=False),
  ),
  "tang2024_links": instead(
    "gpo", "sign of all links but the logistic turned", _turned_links
  ),
  "wang2023_diversity": instead(
    "f_dpo", "reverse KL for all", _get("f_dpo", divergence="reverse_kl")
  ),
  "wu2024_dynamic_beta": negated("beta_dpo"),
  "zeng2024_sequential_kl": instead(
    "tdpo2", "no sequential KL", _get("tdpo2", alpha=0.0)
  ),
  "zhang2024_collapse": negated("npo"),
}


def planted(name: str) -> dict[str, Any]:
  """Runs a table with its failure; returns both verdicts.

  Args:
    name: of the table.
  """
  failure = FAILURES[name]
  there = {_key(line): line for line in cells.read(RESULTS / name / cells.FILE)}
  with mock.patch(failure.target, failure.replacement):
    # Loaded here: its arms hold the run that is patched.
    table = find_tables.load(find_tables.files()[name])
    metrics = [
      [
        cell.run(cell.seed, **cell.settings)
        if failure.objective in (None, arm.settings.get("objective"))
        else there[_key(vars(cell) | {"run": cell.run_name})]["metrics"]
        for cell in row
      ]
      for arm, row in zip(table.arms, table.cells(), strict=True)
    ]
  outcomes = tables.judge(table, Results(table.arms, metrics))
  before = pages.read(RESULTS / name)["verdict"]
  after = tables.verdict(outcomes).value
  return {
    "table": name,
    "planted": failure.what,
    "committed": before,
    "with failure": after,
    "changed": before != after,
  }


def _key(line: Mapping[str, Any]) -> str:
  """Of a cell or of its line: what it is a run of."""
  return json.dumps([line["run"], line["settings"], line["seed"]], sort_keys=True)


def main() -> int:
  """Prints a line for each table; 1 where a verdict stays."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("tables", nargs="*", default=[])
  parser.add_argument("--out", type=Path)
  args = parser.parse_args()
  unplanted = sorted(set(find_tables.files()) - set(FAILURES))
  if unplanted:
    raise SystemExit(f"no failure is planted in: {', '.join(unplanted)}")
  rows = []
  for name in args.tables or sorted(FAILURES):
    rows.append(planted(name))
    print(json.dumps(rows[-1]), flush=True)
    if args.out:
      args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
  return int(not all(row["changed"] for row in rows))


if __name__ == "__main__":
  sys.exit(main())
