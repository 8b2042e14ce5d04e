"""What experiments/README.md reads from a file's header and results."""

import json

import pytest

from xpo_jax.studies import experiments_readme
from xpo_jax.studies.experiments_readme import PaperRow

RECIPE = '''"""A method.

Paper: Doe et al. 2020 (ABC), arXiv:2001.00001, Sec. 2, after Roe and Poe 2019,
  arXiv:1901.00001; theory: Doe et al. 2020, arXiv:2001.00001.
Command: xpo train one [--a 1|2]
  a: a number.
Hardware: 2 CPU cores,
  a minute.
{result}"""
'''


def _write(root, result):
  (root / "tables").mkdir(exist_ok=True)
  (root / "tables" / "one.py").write_text(RECIPE.format(result=result))
  return [
    line for line in experiments_readme.text(root).splitlines() if "[one]" in line
  ]


def test_every_cited_paper_has_a_row(tmp_path):
  rows = _write(tmp_path, "Result: 0.1 [0.0, 0.2],\n  three seeds.\n")
  roe, doe = (
    f"| {who}, [{number}](https://arxiv.org/abs/{number}) | [one](tables/one.py) | "
    "`xpo train one [--a 1\\|2]` | 0.1 [0.0, 0.2], three seeds | 2 CPU cores, a "
    "minute |"
    for who, number in (
      ("Roe and Poe 2019", "1901.00001"),
      ("Doe et al. 2020", "2001.00001"),
    )
  )
  assert rows == [roe, doe]


def test_result_is_of_the_results_where_the_header_has_none(tmp_path):
  (row, _) = _write(tmp_path, "")
  assert "| see the file |" in row
  (tmp_path / "results").mkdir()
  found = [{"label": "A - B", "reward": {"mean": 0.1, "low": 0, "high": 0.25}}]
  (tmp_path / "results" / "one.json").write_text(json.dumps(found))
  (row, _) = _write(tmp_path, "")
  assert "| A - B: reward 0.1 [0, 0.25] |" in row
  (row, _) = _write(tmp_path, "Result: not run. Tested in parts.\n")
  assert "| not run |" in row


def test_result_names_places_in_the_results(tmp_path):
  (tmp_path / "results").mkdir()
  path = tmp_path / "results" / "one.json"
  rows = [
    {"label": "A, b", "reward": {"mean": 0.1, "low": 0, "high": 0.25}, "kl": 2.4},
    {"label": "judge", "accuracy": {"mean": 0.5, "plus_minus": 0.035}},
    {"label": "twice"},
    {"label": "twice"},
  ]
  path.write_text(json.dumps(rows))
  (row, _) = _write(
    tmp_path,
    "Result: {A, b | reward}\n  at {A, b | kl | 2} of {A, b | reward.mean | 1}.\n",
  )
  assert "| 0.100 [0.000, 0.250] at 2.40 of 0.1 |" in row
  other = tmp_path / "results" / "two.json"
  assert (
    experiments_readme.filled("{one: judge | accuracy | 2}", other) == "0.50 +- 0.04"
  )
  for place, message in (
    ("{none | reward}", "0 rows of that label in one.json; labels: A, b, judge"),
    ("{twice | reward}", "2 rows of that label"),
    ("{judge | reward}", "measures there: label, accuracy"),
    ("{three: judge | reward}", "no results three.json"),
  ):
    with pytest.raises(ValueError, match=message):
      experiments_readme.filled(place, path)


def test_citation_without_a_number_is_no_paper():
  assert experiments_readme.papers("none; KL as in Doe 2020 and Roe et al.") == []
  assert experiments_readme.papers("Doe et al.\n2020, arXiv:2001.00001") == [
    PaperRow(2020, "Doe et al.", "2001.00001")
  ]
