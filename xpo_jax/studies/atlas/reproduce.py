"""Rebuilds papers' tables: runs the cells that are missing, writes verdicts and pages.

A table's folder in the results holds `cells.jsonl`, `finding.json`, `table.md`,
`table.tex` and `figure.svg`. Cells are written as they end, so that a killed run goes
on where it was.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xpo_jax.studies import find_recipe
from xpo_jax.studies.atlas import cells, find_tables, pages
from xpo_jax.studies.atlas.cells import Line
from xpo_jax.studies.atlas.table import Cell, Results, Table
from xpo_jax.train import progress

Say = progress.Say


class Plan(NamedTuple):
  """What a table needs and what is there.

  Attributes:
    table: the claim.
    cells: every cell by digest.
    there: lines of the cells that need not run.
  """

  table: Table
  cells: Mapping[str, Cell]
  there: Mapping[str, Line]

  @property
  def missing(self) -> dict[str, Cell]:
    """The cells to run."""
    return {key: cell for key, cell in self.cells.items() if key not in self.there}


def default_results() -> Path:
  """The folder of results: of a checkout, or `runs/results` elsewhere."""
  own = Path("experiments") / "results"
  return own if own.is_dir() else Path("runs") / "results"


def plan(
  names: Sequence[str], results: Path, *, seeds: int | None = None
) -> dict[str, Plan]:
  """Compares tables with the cells that results hold.

  Args:
    names: see `find_tables.named`.
    results: the folder; the package's own results are read too.
    seeds: number of seeds in place of the tables' own.

  Raises:
    ValueError: no such table; fewer than 2 seeds.
  """
  there = cells.cached(results, find_recipe.SHIPPED / "results")
  plans = {}
  for name, table in find_tables.named(names).items():
    if seeds is not None:
      table = dataclasses.replace(table, seeds=seeds)
    wanted = {cells.digest(cell): cell for arm in table.cells() for cell in arm}
    plans[name] = Plan(table, wanted, {k: there[k] for k in wanted if k in there})
  return plans


def plan_lines(
  plans: Mapping[str, Plan], results: Path, *, only: Sequence[str] = ()
) -> list[str]:
  """A line for each table: cells, cached, seconds of those that would run.

  The arguments and errors are those of `rebuild`.
  """
  _check_series(plans, only)
  width = max(map(len, plans), default=0)
  lines, shared = [], set()
  for name, one in plans.items():
    missing = _missing(one, only).keys() - shared
    shared |= missing
    before = _committed(name, results)
    seconds = before["seconds"] / before["cells"] if before else None
    cost = "no estimate" if seconds is None else f"about {len(missing) * seconds:.0f} s"
    verdict = before["verdict"] if before else "not yet rebuilt"
    lines.append(
      f"{name:{width}}  {len(one.cells):4} cells, {len(one.there):4} cached, "
      f"{len(missing):4} to run ({cost}); last verdict: {verdict}"
    )
  return lines


def rebuild(
  plans: Mapping[str, Plan],
  results: Path,
  *,
  only: Sequence[str] = (),
  say: Say = progress.say,
) -> dict[str, Any]:
  """Runs what is missing and writes every table that is complete.

  Args:
    plans: from `plan`.
    results: the folder of results.
    only: run the cells of these series alone; a table that then lacks cells is not
      written.
    say: takes a line.

  Returns:
    Table -> finding, of the tables that were written.

  Raises:
    ValueError: a name in `only` is no series of the tables.
  """
  _check_series(plans, only)
  findings = {}
  ran: dict[str, Line] = {}
  for name, one in plans.items():
    folder = results / name
    missing = {k: cell for k, cell in _missing(one, only).items() if k not in ran}
    with _following(name, len(missing), say) as done:
      for key, cell in missing.items():
        ran[key] = cells.run(cell)
        cells.append(folder / cells.FILE, ran[key])
        done()
    lines = {k: one.there.get(k) or ran.get(k) for k in one.cells}
    if not all(lines.values()):
      count = sum(line is None for line in lines.values())
      say(f"{name}: {count} cells are missing; not written")
      continue
    cells.write(folder / cells.FILE, list(lines.values()))
    found = pages.write(
      folder, one.table, _results(one.table, lines), list(lines.values())
    )
    findings[name] = found
    say(f"{name}: {found['verdict']}")
  return findings


def check(
  plans: Mapping[str, Plan], results: Path, say: Say = progress.say
) -> list[str]:
  """Judges tables anew, from cached cells where code and settings are unchanged.

  Nothing is written.

  Returns:
    A line for each table whose verdict is not the committed one.
  """
  wrong = []
  for name, one in plans.items():
    lines = dict(one.there)
    for key, cell in one.missing.items():
      lines[key] = cells.run(cell)
    found = pages.finding(
      name, one.table, _results(one.table, lines), list(lines.values())
    )
    before = _committed(name, results)
    was = before["verdict"] if before else "none"
    say(f"{name}: {found['verdict']} ({len(one.missing)} cells run)")
    if was != found["verdict"]:
      wrong.append(
        f"{name}: the committed verdict is {was!r}, now {found['verdict']!r}"
      )
  return wrong


def main(args: Any) -> int:
  """`xpo reproduce`: 0, or 1 where `--check` finds another verdict.

  Raises:
    ValueError: neither a name nor `--all`, or both; `--only` with `--check`, which
      judges whole tables; see `plan` and `rebuild`.
  """
  if bool(args.names) == args.all:
    known = "\n".join(f"  {name}" for name in find_tables.files())
    raise ValueError(f"xpo reproduce NAME ..., or --all; tables:\n{known}")
  only = args.only.split(",") if args.only else ()
  if args.check and only:
    raise ValueError(f"--check judges whole tables; leave out --only {args.only}")
  results = args.results or default_results()
  plans = plan(args.names, results, seeds=args.seeds)
  if args.plan:
    print("\n".join(plan_lines(plans, results, only=only)))
    return 0
  if args.check:
    wrong = check(plans, results)
    print("\n".join(wrong) if wrong else "every committed verdict holds")
    return 1 if wrong else 0
  findings = rebuild(plans, results, only=only)
  for name, found in findings.items():
    print(f"\n{name}: {found['verdict']}. {found['claim']}")
    for one in found["predictions"]:
      print(f"  {one['text']}: {pages.value(one)}, expected {pages.expected(one)}")
    print(f"  {results / name / pages.MARKDOWN}")
  return 0


def _results(table: Table, lines: Mapping[str, Line]) -> Results:
  metrics = [
    [lines[cells.digest(cell)]["metrics"] for cell in arm] for arm in table.cells()
  ]
  return Results(table.arms, metrics)


def _committed(name: str, results: Path) -> dict[str, Any] | None:
  """The finding in the results, or else the package's own."""
  return pages.read(results / name) or pages.read(
    find_recipe.SHIPPED / "results" / name
  )


def _missing(one: Plan, only: Sequence[str]) -> dict[str, Cell]:
  """The cells to run, of these series alone unless there are none."""
  if not only:
    return one.missing
  arms = zip(one.table.arms, one.table.cells(), strict=True)
  cells_of = [cell for arm, row in arms if arm.series in only for cell in row]
  keep = set(map(cells.digest, cells_of))
  return {key: cell for key, cell in one.missing.items() if key in keep}


def _check_series(plans: Mapping[str, Plan], only: Sequence[str]) -> None:
  known = {arm.series: None for one in plans.values() for arm in one.table.arms}
  for name in only:
    if name not in known:
      raise ValueError(f"--only {name}: no such series; allowed: {', '.join(known)}")


@contextlib.contextmanager
def _following(name: str, total: int, say: Say) -> Iterator[Any]:
  """Yields a function to call after each cell."""
  done = 0

  def line() -> None:
    nonlocal done
    done += 1
    if done % max(1, total // 10) == 0 or done == total:
      report({"step": done})

  if not total:
    yield line
    return
  say(f"{name}: {total} cells to run")
  with progress.following(total, 0, say, names=()) as report:
    yield line
