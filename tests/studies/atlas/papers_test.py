"""Every table of a paper has a committed result, and it is what its cells say."""

import json
from pathlib import Path

import pytest

from xpo_jax import cli
from xpo_jax.studies.atlas import cells, find_tables, pages
from xpo_jax.studies.atlas.table import Results

RESULTS = Path(__file__).parents[3] / "experiments" / "results"
NAMES = list(find_tables.files())
# Seconds from scratch, should their code have changed since.
SMALL = ("lee2023_position", "munos2023_last_iterate", "richemond2024_fixed_point")


@pytest.mark.parametrize("name", NAMES)
def test_committed_finding_is_what_the_committed_cells_say(name):
  table = find_tables.load(find_tables.files()[name])
  lines = cells.read(RESULTS / name / cells.FILE)
  by_content = {
    _key(line["run"], line["settings"], line["seed"]): line for line in lines
  }
  metrics = [
    [by_content[_key(c.run_name, c.settings, c.seed)]["metrics"] for c in arm]
    for arm in table.cells()
  ]
  results = Results(table.arms, metrics)
  committed = pages.read(RESULTS / name)
  assert pages.finding(name, table, results, lines) == committed
  for file in (pages.MARKDOWN, pages.LATEX):
    assert (
      committed["predictions"][-1]["verdict"] in (RESULTS / name / file).read_text()
    )


def test_committed_folders_are_those_of_tables():
  assert {path.parent.name for path in RESULTS.glob(f"*/{pages.FINDING}")} == set(NAMES)


def test_check_holds_on_small_tables(capsys):
  assert cli.main(["reproduce", *SMALL, "--check"]) == 0
  assert "every committed verdict holds" in capsys.readouterr().out


def _key(run, settings, seed):
  return json.dumps([run, settings, seed], sort_keys=True)
