"""A study that was killed begins anew; what is done, or is another's, stays."""

import pytest

from xpo_jax.config import yaml_file
from xpo_jax.data import sealed_files
from xpo_jax.studies import demo, find_recipe
from xpo_jax.studies.sentiment.settings import SentimentStudy


@pytest.fixture
def killed(tmp_path):
  """A study and the directory that a kill left."""
  study, run_dir = SentimentStudy(), tmp_path / "study"
  run_dir.mkdir()
  settings = {"study": yaml_file.to_dict(study)}
  sealed_files.write_json(run_dir / find_recipe.STUDY, settings)
  return study, run_dir


def test_study_that_was_killed_begins_anew(killed, capsys):
  study, run_dir = killed
  demo.clear(study, run_dir)
  assert not run_dir.exists()
  assert "begins anew" in capsys.readouterr().out
  demo.clear(study, run_dir)  # there is nothing


def test_study_that_is_done_stays(killed):
  study, run_dir = killed
  (run_dir / "report.html").write_text("")
  with pytest.raises(ValueError, match="exists; name another"):
    demo.clear(study, run_dir)
  assert (run_dir / find_recipe.STUDY).exists()


def test_what_is_no_study_stays(tmp_path):
  (tmp_path / "mine").write_text("")
  with pytest.raises(ValueError, match="exists; name another"):
    demo.clear(SentimentStudy(), tmp_path)
  assert (tmp_path / "mine").exists()
