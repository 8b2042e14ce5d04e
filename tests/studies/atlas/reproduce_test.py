"""Tables are rebuilt from their cells, which are run once, whatever ends the run."""

import json
import shutil

import pytest

from xpo_jax import cli
from xpo_jax.studies.atlas import cells, find_tables, pages, reproduce
from xpo_jax.studies.atlas.cells import Cell
from xpo_jax.studies.exact import bandits, sampling

TABLE = '''
"""A table of two small arms."""

from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import sampling

TABLE = Table(
  paper="RLAIF (Google)",
  method="{method}",
  claim="Both orders agree better.",
  where="section 2.1",
  design="Simulated.",
  contrary="They agree no better.",
  departs="A simulated labeller & 100 % of it.",
  arms=sweep(
    "labeller", sampling.position_bias, "bias", {biases}, verdicts="one", pairs=4000
  ),
  predictions=(
    Prediction(
      "agreement at bias 3 above a half",
      "fraction",
      lambda r: r.metric("labeller", "agreement", 3.0) - 0.5,
      ABOVE,
    ),
  ),
  plot=Plot(None, "agreement", "bias, nats", "agreement", "It falls."),
  seeds=3,
)
'''


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A working directory with two tables that share cells."""
  folder = tmp_path / "experiments" / find_tables.FOLDER
  folder.mkdir(parents=True)
  (folder / "lee_first.py").write_text(TABLE.format(method="first", biases=(0.0, 3.0)))
  (folder / "lee_second.py").write_text(
    TABLE.format(method="second", biases=(3.0, 5.0))
  )
  (tmp_path / "experiments" / "results").mkdir()
  monkeypatch.chdir(tmp_path)
  return tmp_path / "experiments" / "results"


@pytest.fixture
def ran(monkeypatch):
  """The cells that are run, in order; raises when told to."""
  count = []

  def run(cell, original=cells.run):
    if len(count) == run.stop_before:
      raise KeyboardInterrupt
    count.append((cell.settings["bias"], cell.seed))
    return original(cell)

  run.stop_before = None
  monkeypatch.setattr(cells, "run", run)
  return count, run


def _contents(folder):
  """What a table's files hold, but for times."""
  lines = [line | {"seconds": 0} for line in cells.read(folder / cells.FILE)]
  found = pages.read(folder) | {"seconds": 0}
  page = (folder / pages.MARKDOWN).read_text().split("| cost |")[0]
  others = [(folder / name).read_text() for name in (pages.LATEX, pages.FIGURE)]
  return lines, found, page, others


def test_killed_run_goes_on_and_leaves_the_same_files(home, ran):
  count, run = ran
  assert cli.main(["reproduce", "lee_first"]) == 0
  whole = _contents(home / "lee_first")
  shutil.rmtree(home / "lee_first")
  count.clear()
  for stop in (2, 5):
    run.stop_before = stop
    with pytest.raises(KeyboardInterrupt):
      reproduce.rebuild(reproduce.plan(["lee_first"], home), home)
  with (home / "lee_first" / cells.FILE).open("a") as file:
    file.write('{"digest": "cut sho')
  run.stop_before = None
  assert cli.main(["reproduce", "lee_first"]) == 0
  assert count == [(bias, seed) for bias in (0.0, 3.0) for seed in range(3)]
  assert _contents(home / "lee_first") == whole


def test_tables_share_cells_and_more_seeds_run_the_new_ones_alone(home, ran):
  count, _ = ran
  assert cli.main(["reproduce", "first"]) == 0
  count.clear()
  assert cli.main(["reproduce", "second"]) == 0
  assert count == [(5.0, seed) for seed in range(3)]
  count.clear()
  assert cli.main(["reproduce", "second", "--seeds", "4"]) == 0
  assert count == [(3.0, 3), (5.0, 3)]
  assert pages.read(home / "lee_second")["seeds"] == 4


def test_only_a_series_plan_and_nothing_to_do(home, ran, capsys):
  count, _ = ran
  assert cli.main(["reproduce", "first", "--plan"]) == 0
  assert "6 cells,    0 cached,    6 to run" in capsys.readouterr().out
  assert cli.main(["reproduce", "first", "--only", "nobody"]) == 2
  assert "allowed: labeller" in capsys.readouterr().err
  assert cli.main(["reproduce", "first", "--plan", "--only", "nobody"]) == 2
  assert "allowed: labeller" in capsys.readouterr().err
  assert cli.main(["reproduce", "first", "--check", "--only", "labeller"]) == 2
  assert "leave out --only labeller" in capsys.readouterr().err
  assert not count
  assert cli.main(["reproduce", "first", "--only", "labeller"]) == 0
  assert len(count) == 6
  assert cli.main(["reproduce", "first"]) == 0
  assert len(count) == 6
  assert cli.main(["reproduce"]) == 2
  assert "lee_first" in capsys.readouterr().err


def test_check_fails_where_a_verdict_does_not_hold(home, capsys):
  assert cli.main(["reproduce", "first"]) == 0
  assert cli.main(["reproduce", "first", "--check"]) == 0
  path = home / "lee_first" / pages.FINDING
  found = json.loads(path.read_text())
  assert found["verdict"] == "agrees"
  path.write_text(json.dumps(found | {"verdict": "contrary"}))
  before = path.read_text()
  assert cli.main(["reproduce", "first", "--check"]) == 1
  assert "committed verdict is 'contrary', now 'agrees'" in capsys.readouterr().out
  assert path.read_text() == before


def test_pages_show_claim_interval_verdict_and_command(home):
  assert cli.main(["reproduce", "first"]) == 0
  page = (home / "lee_first" / pages.MARKDOWN).read_text()
  found = pages.read(home / "lee_first")
  (prediction,) = found["predictions"]
  shown = (
    f"{prediction['mean']:.3f} [{prediction['low']:.3f}, {prediction['high']:.3f}]"
  )
  assert shown in page and "**agrees**" in page and "`xpo reproduce lee_first`" in page
  latex = (home / "lee_first" / pages.LATEX).read_text()
  assert shown in latex and r"95\,\%" in latex
  assert "<svg" in (home / "lee_first" / pages.FIGURE).read_text()


def test_digest_is_of_settings_seed_and_code(monkeypatch):
  one = Cell(sampling.position_bias, {"bias": 1.0}, 0)
  pairs = {"objective": "dpo", "hparams": {"beta": 0.1}}
  keys = {
    cells.digest(cell)
    for cell in (
      one,
      Cell(sampling.position_bias, {"bias": 2.0}, 0),
      Cell(sampling.position_bias, {"bias": 1.0}, 1),
      Cell(bandits.pairs, pairs, 0),
      Cell(bandits.pairs, pairs | {"objective": "ipo"}, 0),
    )
  }
  assert len(keys) == 5
  assert cells.digest(Cell(sampling.position_bias, {"bias": 1.0}, 0)) in keys
  files = []
  monkeypatch.setattr(cells.code_digest, "digest", lambda names: files.append(names))
  cells._code.cache_clear()
  cells.digest(Cell(bandits.pairs, pairs, 0))
  cells._code.cache_clear()
  assert files == [["xpo_jax.studies.exact.bandits", "xpo_jax.objectives._dpo"]]


@pytest.mark.parametrize("name", ["RLAIF (Google)", "2309.00267"])
def test_table_is_found_by_its_paper(home, name):
  assert {"lee_first", "lee_second"} <= find_tables.named([name]).keys()


def test_unknown_table_suggests_the_nearest(home):
  with pytest.raises(ValueError, match="did you mean 'lee_first'"):
    find_tables.named(["lee_frist"])
