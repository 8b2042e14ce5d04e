"""Studies of online runs in miniature: what is judged, kept, resumed and said."""

import dataclasses
import importlib.util
import operator
from pathlib import Path

import jax
import numpy as np
import pytest

from xpo_jax.models import pretrained
from xpo_jax.recipes import find, online_study, online_world, staged
from xpo_jax.recipes.online_study import Point, Study
from xpo_jax.recipes.staged_world import World
from xpo_jax.train import offline
from xpo_jax.train.experiment import Use
from xpo_jax.train.online_experiment import Sampling

TABLES = Path(__file__).parent.parent.parent / "experiments" / "tables"
TINY = World(
  texts=240,
  vocab=400,
  width=8,
  layers=1,
  longest=6,
  row_length=40,
  sft_steps=2,
  sft_rows=2,
  asked=8,
  rows=2,
  prompts=3,
  samples=2,
  seeds=(0, 1),
)


def script(name: str):
  """A script of `experiments/tables/`, imported."""
  spec = importlib.util.spec_from_file_location(name, TABLES / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def small(objective: Use, **changes):
  """An online experiment of two iterations."""
  sampling = Sampling(completions=2, max_tokens=TINY.longest)
  sizes = {"iterations": 2, "prompts_per_iteration": 2, "sampling": sampling}
  return online_world.run(objective, TINY, **sizes | changes)


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
  "rloo": find.Recipe(small(Use("rloo", beta=0.1))),
  "stages": find.Recipe(Stages(), _run_stages),
  "broken": find.Recipe(Stages(), _run_broken),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  """The script on three small recipes, run twice: its directory, and both outputs."""
  run_dir = tmp_path_factory.mktemp("runs") / "table"
  module, said = script("online"), []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(online_study, "study", lambda source=None: Study(TINY))
    patch.setattr(find, "names", lambda: dict.fromkeys(RECIPES))
    patch.setattr(find, "required", lambda name: ())
    patch.setattr(find, "load", RECIPES.__getitem__)
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


def test_what_was_run_is_not_run_again(table):
  run_dir, _, first = table
  again = _written(run_dir)
  kept = [name for name in first if name.startswith(("sft", "rloo-0", "points"))]
  assert kept and all(again[name] == first[name] for name in kept)


def test_stages_start_from_the_studys_own_start(table):
  run_dir, _, _ = table
  both = [
    pretrained.load(where / staged.SFT / offline.POLICY).params
    for where in (run_dir, run_dir / "staged" / "stages")
  ]
  jax.tree.map(np.testing.assert_array_equal, *both)


def test_last_point_is_of_the_policy_that_the_run_exports(table):
  run_dir, _, _ = table
  ((iteration, params),) = online_study.policies(run_dir / "rloo-1")
  assert iteration == 2
  exported = pretrained.load(run_dir / "rloo-1" / offline.POLICY).params
  jax.tree.map(np.testing.assert_array_equal, params["lm"], exported["lm"])
  start = online_study.by_arm(online_study.read(run_dir))["SFT"][0][-1]
  np.testing.assert_allclose(start.kl_P, 0, atol=1e-5)


def _points(label, values_SP):
  one = np.ones(values_SP.shape[1])
  return [Point(label, s, 0, 0.0, v_P, one, one, {}) for s, v_P in enumerate(values_SP)]


def test_differences_are_paired_over_the_seeds_that_both_have():
  rng = np.random.default_rng(0)
  a_SP, b_SP = rng.normal(size=(2, 3, 5))
  a, b = _points("a", a_SP), _points("b", b_SP)[:2]
  found = online_study.gap(a, b, "reward")
  assert found.mean == pytest.approx((a_SP[:2] - b_SP[:2]).mean())
  assert online_study.gap(a[2:], b, "reward") is None


def test_tasks_in_processes_go_on_when_one_fails():
  said = []
  tasks = {"good": (operator.truediv, 1, 1), "bad": (operator.truediv, 1, 0)}
  failed = online_study.at_once(tasks, jobs=2, say=said.append)
  assert failed == {"bad": "ZeroDivisionError: division by zero"}
  assert sorted(line.split("] ")[1].split(":")[0] for line in said) == sorted(tasks)


def test_arguments_without_a_default_are_required(tmp_path):
  path = tmp_path / "recipe.py"
  path.write_text("def experiment(path, policy, rate=1.0, *, key, seed=0):\n  pass\n")
  assert find.required(str(path)) == ("path", "policy", "key")
