"""Studies of online runs in miniature: what is judged, kept, resumed and said."""

import dataclasses
import importlib.util
import operator
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.studies import tiny_world
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.feedback import reward_model, rules
from xpo_jax.models import hf_checkpoint
from xpo_jax.studies import find_recipe, synthetic_world
from xpo_jax.studies.frontier import online_frontier
from xpo_jax.studies.frontier.online_frontier import Point, Study
from xpo_jax.studies.multistage import stage_samples, staged
from xpo_jax.studies.multistage.staged_world import World
from xpo_jax.train import offline, validate

TABLES = Path(__file__).parents[3] / "experiments" / "tables"
TINY = dataclasses.replace(tiny_world.TINY, seeds=(0, 1))


def script(name: str):
  """A script of `experiments/tables/`, imported."""
  spec = importlib.util.spec_from_file_location(name, TABLES / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def small(objective: ObjectiveConfig, **changes):
  """An online experiment of two iterations."""
  sampling = Sampling(completions=2, max_completion_tokens=TINY.longest)
  sizes = {"iterations": 2, "prompts_per_iteration": 2, "sampling": sampling}
  return synthetic_world.run(objective, TINY, **sizes | changes)


@dataclasses.dataclass(frozen=True)
class Stages:
  """Settings of a recipe with stages."""

  world: World = TINY


def _run_stages(settings, run_dir):
  lab = staged.Lab(settings, run_dir)
  policies = dict.fromkeys(settings.world.seeds, lab.start.params)
  print(lab.finish("stages", [lab.row("SFT", policies), lab.row("same", policies)]))
  return 0


def _run_broken(settings, run_dir):
  raise ValueError("it is broken")


RECIPES = {
  "rloo": find_recipe.Recipe(small(ObjectiveConfig("rloo", beta=0.1))),
  "stages": find_recipe.Recipe(Stages(), _run_stages),
  "broken": find_recipe.Recipe(Stages(), _run_broken),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  """The script on three small recipes, run twice: its directory, and both outputs."""
  run_dir = tmp_path_factory.mktemp("runs") / "table"
  module, said = script("online"), []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(online_frontier, "study", lambda source=None: Study(TINY))
    patch.setattr(find_recipe, "names", lambda: dict.fromkeys(RECIPES))
    patch.setattr(find_recipe, "required", lambda name: ())
    patch.setattr(find_recipe, "load", RECIPES.__getitem__)
    patch.setattr(module.demo, "environment", lambda: None)
    patch.setattr(module.demo, "show", said.append)
    where = ["--run-dir", str(run_dir), "--jobs", "1"]
    assert module.main([*where, "--seeds", "1", "--only", "rloo"]) == 0
    first = _written(run_dir)
    assert module.main([*where, "--seeds", "2"]) == 1  # a recipe is broken
    with pytest.raises(ValueError, match="recipes are rloo, stages, broken"):
      module.recipes(["rlo"])
  return run_dir, said, first


def _written(run_dir: Path) -> dict[str, int]:
  return {
    str(p.relative_to(run_dir)): p.stat().st_mtime_ns
    for p in run_dir.rglob("*")
    if p.is_file()
  }


def test_table_has_a_row_for_every_recipe_and_arm(table):
  _, said, _ = table
  few, _, rows, _ = said
  assert [row[0] for row in few.rows] == ["SFT (1 seeds)", "rloo (1 seeds)"]
  assert [row[0] for row in rows.rows] == ["SFT", "rloo", "stages: same"]
  assert {len(row) for row in rows.rows} == {len(rows.header)}
  assert rows.rows[-1][2] == "0.000 [0.000, 0.000]"  # it is the start


def test_what_was_run_is_not_run_again(table):
  run_dir, _, first = table
  again = _written(run_dir)
  kept = [name for name in first if name.startswith(("sft", "rloo-0", "points"))]
  assert kept and all(again[name] == first[name] for name in kept)


def test_stages_start_from_the_studys_own_start(table):
  run_dir, _, _ = table
  both = [
    hf_checkpoint.load(where / staged.SFT / offline.POLICY).params
    for where in (run_dir, run_dir / "staged" / "stages")
  ]
  jax.tree.map(np.testing.assert_array_equal, *both)


def test_points_are_of_the_start_and_of_the_last_policy(table):
  run_dir, _, _ = table
  arms = online_frontier.by_arm(online_frontier.read(run_dir))
  assert set(arms) == {"SFT", "rloo"} and set(arms["rloo"]) == {0, 1}
  np.testing.assert_allclose(arms["SFT"][0][-1].kl_P, 0, atol=1e-5)
  assert [p.iteration for p in arms["rloo"][1]] == [2]
  assert arms["rloo"][1][0].kl_P.mean() > 1e-6


def _lab(run_dir: Path, start: Path) -> staged.Lab:
  """A lab whose start is that of another directory."""
  lab = staged.Lab(Study(TINY), run_dir)
  shutil.copytree(start / staged.SFT, run_dir / staged.SFT)
  return lab


def test_points_along_a_run_lead_from_the_start_to_its_policy(table, tmp_path):
  lab = _lab(tmp_path / "run", table[0])
  found = online_frontier.online(lab, "rloo", RECIPES["rloo"].experiment, 0, every=1)
  assert [p.iteration for p in found] == [0, 1, 2]
  np.testing.assert_allclose(found[0].kl_P, 0, atol=1e-5)
  assert 0 == found[0].seconds < found[1].seconds < found[2].seconds
  arms = online_frontier.by_arm(online_frontier.read(table[0]))
  np.testing.assert_allclose(found[2].kl_P, arms["rloo"][0][0].kl_P, atol=1e-6)


def _reward(lab, name, rows, *, seed, epochs, rate=None) -> str:
  """Trains nothing; the stage's name in place of its directory."""
  del lab, seed, epochs, rate
  assert rows
  return name


def count_words(directory: str):
  """Stands in for a reward model."""
  del directory
  return rules.length()


@pytest.fixture
def studied(table, tmp_path, monkeypatch):
  """Runs a script without training: what would be run is checked and remembered, its
  policies are the start, and the start with stronger weights."""
  seen = []

  def online(lab, label, experiment, seed, every=None, ask=None):
    validate.check(experiment)
    seen.append((label, experiment, seed, every))
    start = lab.start.params
    strong = jax.tree.map(lambda x: 3 * x, start)
    path = [(1, start), (2, strong)]
    return online_frontier.other(lab, label, seed, lambda: path, ask)

  monkeypatch.setattr(online_frontier, "online", online)
  monkeypatch.setattr(online_frontier, "study", lambda source=None: Study(TINY))
  monkeypatch.setattr(staged.Lab, "stage", lambda lab, name, *given, **how: lab.start)
  monkeypatch.setattr(staged.Lab, "reward", _reward)
  monkeypatch.setattr(reward_model, "scorer", count_words)

  def run(name, **constants):
    run_dir = tmp_path / name
    _lab(run_dir, table[0])
    module, shown = script(name), []
    monkeypatch.setattr(module.demo, "environment", lambda: None)
    monkeypatch.setattr(module.demo, "show", shown.append)
    for constant, value in constants.items():
      monkeypatch.setattr(module, constant, value)
    where = ["--run-dir", str(run_dir), "--jobs", "1", "--seeds", "2"]
    assert module.main(where) == 0
    count = len(seen)
    assert module.main([*where, "--show"]) == 0 and len(seen) == count
    return shown[: len(shown) // 2], seen, run_dir

  return run


@pytest.mark.parametrize(
  "name", ["online", "online_frontier", "noisy_judge", "overoptimisation"]
)
def test_show_runs_nothing_where_there_is_nothing(name, tmp_path, monkeypatch):
  monkeypatch.setattr(staged.Lab, "_run", lambda *given: pytest.fail("it trains"))
  module = script(name)
  monkeypatch.setattr(module.demo, "environment", lambda: None)
  with pytest.raises(ValueError, match="nothing to show; run it without --show"):
    module.main(["--run-dir", str(tmp_path / "empty"), "--show"])


def test_frontier_has_every_arm_and_best_of_n(studied):
  sizes = {"POOL": 4, "BEST_OF": (1, 2), "MATCHED": (0.01,), "BETAS": (1.0,)}
  (rewards, claims), seen, run_dir = studied("online_frontier", **sizes)
  labels = {"PPO", "RLOO", "REINFORCE", "RAFT", "online DPO"}
  assert {row[0] for row in rewards.rows} == labels | {"offline DPO", "best of n"}
  assert {(one[0], one[2]) for one in seen} == {(x, s) for x in labels for s in (0, 1)}
  assert {row[2].split(":")[0] for row in claims.rows} == {
    "online DPO - offline DPO",
    "RLOO - RAFT",
    "RLOO - PPO",
    "RLOO - REINFORCE",
  }
  # Where two arms are the same policies, no claim holds.
  assert all("0.000 [0.000, 0.000]" in row[2] for row in claims.rows[1:])
  assert (run_dir / "frontier.svg").read_text().startswith("<svg")


def test_noisy_judges_differ_in_nothing_but_their_error(studied):
  (_, claims), seen, _ = studied("noisy_judge", MATCHED=(0.01,))
  hparams = [one[1].feedback.source.hparams for one in seen if one[2] == 1]
  assert [k["error"] for k in hparams] == [0.0, 0.1, 0.25, 0.4]
  rest = [{n: x for n, x in k.items() if n != "error"} for k in hparams]
  assert all(k == rest[0] for k in rest) and len(claims.rows) == 3


def test_overoptimisation_asks_both_reward_models_and_the_truth(studied):
  (points, claims), seen, run_dir = studied("overoptimisation")
  assert [row[1] for row in points.rows] == [1, 2] * 3
  arms = {"200 labels", "400 labels", "labels like length"}
  assert {row[1].split(":")[0] for row in claims.rows} == arms
  ahead = [row for row in claims.rows if "leaves the test score behind" in row[1]]
  assert len(ahead) == 3  # of two that say the same neither is ahead
  assert {row[3] for row in ahead} == {"does not separate here"}
  judges = {
    (label, one.feedback.source.hparams["directory"]) for label, one, *_ in seen
  }
  assert judges == {(a, f"{a}-train-{s}") for a, _ in judges for s in (0, 1)}
  assert (run_dir / "200_labels.svg").read_text().startswith("<svg")
  for one in online_frontier.read(run_dir):  # both stand-ins count words
    np.testing.assert_array_equal(one.column("train score"), one.column("test score"))


def test_equilibrium_is_exploited_less_than_a_reward_at_its_kl(studied):
  (exact, played), seen, _ = studied("nash")
  closest = exact.rows[-1]  # next to no tie: the game's own equilibrium
  assert float(closest[2]) < 0.01 < float(closest[3])
  assert {one[1].feedback.kind for one in seen} == {"scores", "win_rates"}
  assert len(played.rows) == 4 and {len(row) for row in played.rows} == {7}


def test_labels_follow_the_probability_and_the_same_text_twice_is_no_pair():
  texts = [["a", "b"], ["a", "b"], ["a", "a"]]
  drawn = stage_samples.Sampled(["x", "y", "z"], texts, np.zeros((3, 2)))
  rng = np.random.default_rng(0)
  pairs = stage_samples.labelled(drawn, np.array([1.0, 0.0, 1.0]), rng)
  found = [(p.prompt, p.chosen, p.rejected) for p in pairs]
  assert found == [("x", "a", "b"), ("y", "b", "a")]


def _points(label, values_SP):
  one = np.ones(values_SP.shape[1])
  return [Point(label, s, 0, 0.0, v_P, one, one, {}) for s, v_P in enumerate(values_SP)]


def test_differences_are_paired_over_the_seeds_that_both_have():
  rng = np.random.default_rng(0)
  a_SP, b_SP = rng.normal(size=(2, 3, 5))
  a, b = _points("a", a_SP), _points("b", b_SP)[:2]
  found = online_frontier.gap(a, b, "reward")
  assert found.mean == pytest.approx((a_SP[:2] - b_SP[:2]).mean())
  assert online_frontier.gap(a[2:], b, "reward") is None


def test_tasks_in_processes_go_on_when_one_fails():
  said = []
  tasks = {"good": (operator.truediv, 1, 1), "bad": (operator.truediv, 1, 0)}
  failed = online_frontier.at_once(tasks, jobs=2, say=said.append)
  assert failed == {"bad": "ZeroDivisionError: division by zero"}
  assert sorted(line.split("] ")[1].split(":")[0] for line in said) == sorted(tasks)


def test_arguments_without_a_default_are_required(tmp_path):
  path = tmp_path / "recipe.py"
  path.write_text("def experiment(path, policy, rate=1.0, *, key, seed=0):\n  pass\n")
  assert find_recipe.required(str(path)) == ("path", "policy", "key")
