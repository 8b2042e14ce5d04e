"""Claims on text name rows that are there, and are judged by their intervals."""

import json
from pathlib import Path

import pytest

from xpo_jax.studies.atlas import find_tables, on_text
from xpo_jax.studies.atlas.table import Verdict

RESULTS = Path(__file__).parents[3] / "experiments" / "results"


def test_every_claim_has_a_row_and_its_paper_a_table():
  found = on_text.findings(RESULTS)
  assert sum(map(len, found.values())) == len(on_text.CLAIMS)
  tables = map(find_tables.load, find_tables.files().values())
  assert found.keys() <= {table.paper for table in tables}


@pytest.fixture
def results(tmp_path, monkeypatch):
  """Results of one claim, written by `write(low, high)`."""
  claim = on_text.CLAIMS[0]
  monkeypatch.setattr(on_text, "CLAIMS", (claim,))

  def write(**row):
    rows = [{"label": "another"}, {"label": claim.label} | row]
    (tmp_path / f"{claim.recipe}.json").write_text(json.dumps(rows))
    return tmp_path

  return write


@pytest.mark.parametrize(
  ("low", "high", "verdict"),
  [
    (0.1, 0.3, Verdict.AGREES),
    (-0.1, 0.3, Verdict.NOT_SEPARABLE),
    (-0.3, -0.1, Verdict.CONTRARY),
  ],
)
def test_verdict_is_the_intervals(results, low, high, verdict):
  folder = results(reward={"mean": (low + high) / 2, "low": low, "high": high})
  ((finding,),) = on_text.findings(folder).values()
  assert (finding.interval.low, finding.verdict) == (low, verdict)


def test_row_without_an_interval_is_refused(results):
  with pytest.raises(ValueError, match="has not one interval of 'reward'"):
    on_text.findings(results(reward=0.2))
