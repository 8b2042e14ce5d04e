"""One random kill more than in online_test; `kills.py` does twenty."""

import dataclasses

from tests.train import kills
from tests.train.kills import Death

SHORT = dataclasses.replace(kills.RUN, iterations=2)


def test_run_killed_while_it_seals_a_checkpoint_goes_on_bit_for_bit(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  deaths, said = [Death("sealing", 2, 0.0)], []
  assert kills.lives(SHORT, tmp_path, deaths, said.append) == deaths
  assert len(said) == 1
  assert kills.differences(tmp_path) == []
  assert kills.asked_twice(tmp_path)[1] == []


def test_a_difference_is_found(tmp_path):
  for name in ("whole", "killed"):
    (tmp_path / name / "rollouts").mkdir(parents=True)
  (tmp_path / "whole" / "rollouts" / "000001.jsonl").write_text("a")
  log = ["asked 0", "asked 0", "written 0", "asked 1", "written 1", "asked 1"]
  (tmp_path / "killed.log").write_text("\n".join(log))
  assert kills.asked_twice(tmp_path) == (["0"], ["1"])


def test_deaths_are_of_every_place_and_of_the_seed():
  deaths = kills.drawn(20, seed=0)
  assert deaths == kills.drawn(20, seed=0) != kills.drawn(20, seed=1)
  assert {death.place for death in deaths} == set(kills.PLACES)
