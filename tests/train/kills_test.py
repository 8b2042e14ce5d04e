"""One random kill more than in `rollouts_program_test`; `kills.py` does twenty."""

from tests.train import compare, kills
from tests.train.kills import Kill
from xpo_jax.config import experiment as experiments

SHORT = experiments.replace(kills.RUN, iterations=2)


def test_run_killed_while_a_checkpoint_is_sealed_resumes_bit_for_bit(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  drawn, said = [Kill("sealing", 2, 0.0)], []
  assert kills.run_both(SHORT, tmp_path, drawn, said.append) == drawn
  assert len(said) == 1
  assert compare.differences(tmp_path / "killed", tmp_path / "whole") == []
  assert kills.asked_twice(tmp_path)[1] == []


def test_feedback_asked_for_again_is_seen(tmp_path):
  log = ["asked 0", "asked 0", "written 0", "asked 1", "written 1", "asked 1"]
  (tmp_path / "killed.log").write_text("\n".join(log))
  assert kills.asked_twice(tmp_path) == (["0"], ["1"])


def test_kills_are_of_every_place_and_of_the_seed():
  drawn = kills.draw(20, seed=0)
  assert drawn == kills.draw(20, seed=0) != kills.draw(20, seed=1)
  assert {kill.place for kill in drawn} == set(kills.PLACES)
