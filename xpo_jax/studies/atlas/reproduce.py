"""Rebuilds papers' tables: runs the cells that are missing, writes verdicts and pages.

A table's folder in the results holds `cells.jsonl`, `finding.json`, `table.md`,
`table.tex` and `figure.svg`. Cells are written as they end, so that a killed run goes
on where it was. A finding is never replaced by one of fewer seeds.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xpo_jax.studies import find_recipe
from xpo_jax.studies.atlas import cells, find_tables, pages, paper_scale, worlds
from xpo_jax.studies.atlas.cells import Line
from xpo_jax.studies.atlas.table import Cell, Table
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


def default_results(world: str = worlds.EXACT) -> Path:
  """The folder of results: of a checkout, or `runs/results` elsewhere and of a chat
  model that none is committed of.

  Args:
    world: as `--world`.
  """
  own = Path("experiments") / "results"
  if world not in (worlds.EXACT, worlds.SMOLLM2):
    return Path("runs") / "results" / Path(world).name
  return own if own.is_dir() else Path("runs") / "results"


def plan(
  names: Sequence[str],
  results: Path,
  *,
  seeds: int | None = None,
  world: str = worlds.EXACT,
  any_code: bool = False,
) -> dict[str, Plan]:
  """Compares tables with the cells that results hold.

  Args:
    names: see `find_tables.named`.
    results: the folder; the package's own results are read too.
    seeds: number of seeds in place of the tables' own.
    world: as `--world`; a chat model's directory is that of every arm.
    any_code: count cells as there whatever the code that they were run by.

  Raises:
    ValueError: no such table; too few seeds.
  """
  there = cells.cached(results, find_recipe.SHIPPED / "results")
  # Those of `results` stand first, and win.
  of_any_code = {cells.identity(line): line for line in reversed(there.values())}
  plans = {}
  for name, table in find_tables.named(names, worlds.of(world)).items():
    if seeds is not None:
      table = dataclasses.replace(table, seeds=seeds)
    if worlds.of(world) == worlds.CHAT_MODEL:
      table = _on_model(table, world)
    wanted = {cells.digest(cell): cell for arm in table.cells() for cell in arm}
    own = {key: there[key] for key in wanted if key in there}
    if any_code:
      lines = {key: of_any_code.get(cells.identity(x)) for key, x in wanted.items()}
      own = {key: line for key, line in lines.items() if line is not None} | own
    plans[name] = Plan(table, wanted, own)
  return plans


def _on_model(table: Table, directory: str) -> Table:
  """A table whose arms start from a chat model."""
  arms = [
    arm._replace(settings={**arm.settings, "policy": directory}) for arm in table.arms
  ]
  return dataclasses.replace(table, arms=tuple(arms))


def plan_lines(
  plans: Mapping[str, Plan], results: Path, *, only: Sequence[str] = ()
) -> list[str]:
  """A line for each table: cells, cached, seconds of those that would run.

  The arguments and errors are those of `rebuild`.
  """
  _check(plans, results, only)
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
    ValueError: a name in `only` is no series of the tables; a file that cells read is
      missing; the folder has a finding of more seeds.
  """
  _check(plans, results, only)
  findings = {}
  ran: dict[str, Line] = {}
  for name, one in plans.items():
    path = results / name / cells.FILE
    missing = _missing(one, only)
    lines = _run(name, one, missing, ran=ran, path=path, say=say)
    if len(lines) < len(one.cells):
      count = len(one.cells) - len(lines)
      say(f"{name}: {count} cells are missing; not written")
      continue
    cells.write(path, _with_others(one.table, lines, path, say))
    findings[name] = pages.write(path.parent, one.table, lines)
    say(f"{name}: {findings[name]['verdict']}")
  return findings


def check(
  plans: Mapping[str, Plan], results: Path, say: Say = progress.say
) -> list[str]:
  """Judges tables anew, from cached cells where code and settings are unchanged.

  Nothing is written.

  Returns:
    A line for each verdict, of a table or of a prediction, that is not the committed
    one.
  """
  wrong = []
  ran: dict[str, Line] = {}
  for name, one in plans.items():
    lines = _run(name, one, one.missing, ran=ran, path=None, say=say)
    found = pages.finding(name, one.table, lines)
    say(f"{name}: {found['verdict']} ({len(one.missing)} cells not cached)")
    before, after = _verdicts(_committed(name, results)), _verdicts(found)
    for what in dict.fromkeys([*before, *after]):
      was, now = before.get(what, "none"), after.get(what, "none")
      if was != now:
        wrong.append(f"{name}{what}: the committed verdict is {was!r}, now {now!r}")
  return wrong


def render(
  names: Sequence[str], results: Path, *, world: str = worlds.EXACT
) -> dict[str, Any]:
  """Writes tables' pages anew from the cells in their folders, of whatever code, with
  as many seeds as the finding there; then refuses the tables that lack cells.

  Args:
    names: see `find_tables.named`.
    results: the folder of results.
    world: see `plan`.

  Returns:
    Table -> finding.

  Raises:
    ValueError: no such table; folders lack cells of their tables; the pages of all
      others are written.
  """
  findings, faults = {}, []
  for name, table in find_tables.named(names, worlds.of(world)).items():
    if worlds.of(world) == worlds.CHAT_MODEL:
      table = _on_model(table, world)
    folder = results / name
    if before := pages.read(folder):
      table = dataclasses.replace(table, seeds=before["seeds"])
    try:
      findings[name] = pages.write(folder, table, cells.read(folder / cells.FILE))
    except ValueError as error:
      faults.append(f"{folder / cells.FILE}: {error}")
  if faults:
    faults += ["the pages of all others were written"] if findings else []
    raise ValueError("\n".join(faults))
  return findings


def main(args: Any) -> int:
  """`xpo reproduce`: 0, or 1 where `--check` finds another verdict.

  Raises:
    ValueError: neither a name nor `--all`, or both; `--check` or `--render`, which are
      of whole tables, with each other, `--only`, `--seeds`, `--any-code` or `--plan`;
      `--scale paper` with a flag of cells, or without the accelerators; see `plan`,
      `rebuild` and `render`.
  """
  if bool(args.names) == args.all:
    known = "\n".join(f"  {name}" for name in find_tables.files(worlds.of(args.world)))
    raise ValueError(f"xpo reproduce NAME ..., or --all; tables:\n{known}")
  if args.scale == "paper":
    return _at_paper_scale(args)
  flags = ("check", "render", "only", "seeds", "plan", "any_code")
  given = [
    f"--{flag.replace('_', '-')}"
    for flag in flags
    if getattr(args, flag) not in (None, False)
  ]
  if len(given) > 1 and given[0] in ("--check", "--render"):
    rest = " and ".join(given[1:])
    raise ValueError(f"{given[0]} is of whole tables; leave out {rest}")
  results = args.results or default_results(args.world)
  if args.render:
    _print(render(args.names, results, world=args.world), results)
    return 0
  plans = plan(
    args.names,
    results,
    seeds=args.seeds,
    world=args.world,
    any_code=args.any_code,
  )
  only = args.only or ()
  if args.plan:
    print("\n".join(plan_lines(plans, results, only=only)))
    return 0
  if args.check:
    wrong = check(plans, results)
    print("\n".join(wrong) if wrong else "every committed verdict holds")
    return 1 if wrong else 0
  _print(rebuild(plans, results, only=only), results)
  return 0


def _at_paper_scale(args: Any) -> int:
  """Shows the recipes of the tables' papers, and runs them unless they are planned."""
  flags = ("check", "render", "only", "seeds", "any_code")
  given = [flag.replace("_", "-") for flag in flags if getattr(args, flag)]
  if given:
    raise ValueError(f"--scale paper has no cells: leave out --{given[0]}")
  tables = find_tables.named(args.names, worlds.of(args.world))
  known = paper_scale.recipes()
  recipes = [known[paper] for paper in dict.fromkeys(t.paper for t in tables.values())]
  for recipe in recipes:
    print("\n".join(paper_scale.lines(recipe)), flush=True)
  if args.plan:
    return 0
  for recipe in recipes:
    if code := paper_scale.run(recipe):
      return code
  return 0


def _print(findings: Mapping[str, Any], results: Path) -> None:
  for name, found in findings.items():
    print(f"\n{name}: {found['verdict']}. {found['claim']}")
    for one in found["predictions"]:
      print(f"  {one['text']}: {pages.value(one)}, expected {pages.expected(one)}")
    print(f"  {results / name / pages.MARKDOWN}")


def _run(
  name: str,
  one: Plan,
  missing: Mapping[str, Cell],
  *,
  ran: dict[str, Line],
  path: Path | None,
  say: Say,
) -> list[Line]:
  """Runs those missing cells that no table before has run; returns the table's lines.

  Args:
    name: of the table.
    one: its plan.
    missing: cells to run, by digest.
    ran: what tables before have run; what is run here is added.
    path: file that gets each line; None: none.
    say: takes a line of progress.
  """
  waiting = {key: cell for key, cell in missing.items() if key not in ran}
  with _following(name, len(waiting), say) as done:
    for key, cell in waiting.items():
      ran[key] = cells.run(cell)
      if path is not None:
        cells.append(path, ran[key])
      done()
  there = {**ran, **one.there}
  return [there[key] for key in one.cells if key in there]


def _with_others(table: Table, lines: list[Line], path: Path, say: Say) -> list[Line]:
  """A table's lines, then those of other seeds of its arms that its file has."""
  arms = {cells.identity(Cell(arm.run, arm.settings, 0)) for arm in table.arms}
  own = set(map(cells.identity, lines))
  others = {cells.identity(line): line for line in cells.read(path)}
  others = {key: line for key, line in others.items() if key not in own}
  kept = [
    line for line in others.values() if cells.identity(line | {"seed": 0}) in arms
  ]
  if len(kept) < len(others):
    say(f"{path}: left out {len(others) - len(kept)} cells of arms it no longer has")
  return lines + sorted(kept, key=cells.identity)


def _verdicts(found: Mapping[str, Any] | None) -> dict[str, str]:
  """The verdict of a finding and of each of its predictions, by what it is of."""
  if found is None:
    return {}
  of_predictions = {f", {one['text']}": one["verdict"] for one in found["predictions"]}
  return {"": found["verdict"], **of_predictions}


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


def _check(plans: Mapping[str, Plan], results: Path, only: Sequence[str]) -> None:
  """Refuses an unknown series, a file that is not there, and fewer seeds than a finding
  in the results has."""
  known = {arm.series: None for one in plans.values() for arm in one.table.arms}
  for name in only:
    if name not in known:
      raise ValueError(f"--only {name}: no such series; allowed: {', '.join(known)}")
  for name, one in plans.items():
    missing = _missing(one, only)
    for arm, row in zip(one.table.arms, one.table.cells(), strict=True):
      absent = [path for path in arm.files if not Path(path).exists()]
      if absent and any(cells.digest(cell) in missing for cell in row):
        raise ValueError(
          f"{name}: no such file {absent[0]!r}; put it there "
          f"({arm.files[absent[0]]}), or name the other tables"
        )
    before = pages.read(results / name)
    if before and before["seeds"] > one.table.seeds:
      raise ValueError(
        f"--seeds {one.table.seeds}: {results / name} has a finding of "
        f"{before['seeds']} seeds; write one of fewer elsewhere with --results DIR"
      )


@contextlib.contextmanager
def _following(name: str, total: int, say: Say) -> Iterator[Any]:
  """Yields a function to call after each cell."""
  done = 0
  every = 1 if sys.stdout.isatty() else max(1, total // 10)  # a bar, or lines

  def line() -> None:
    nonlocal done
    done += 1
    if done % every == 0 or done == total:
      report({"step": done})

  if not total:
    yield line
    return
  say(f"{name}: {total} cells to run")
  with progress.following(total, 0, say, names=()) as report:
    yield line
