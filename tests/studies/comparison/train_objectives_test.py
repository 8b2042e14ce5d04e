"""The comparison in miniature: who takes part, the search, resuming, the page."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from experiments import compare_objectives
from xpo_jax import cli
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.ops import token_stats
from xpo_jax.studies import find_recipe, vectorised_runs
from xpo_jax.studies.comparison import comparison_page, learning_rates, train_objectives
from xpo_jax.studies.comparison import settings as comparison_settings
from xpo_jax.studies.comparison.settings import ComparedObjective, Comparison, Trial
from xpo_jax.types import Layout, Objective, TokenStat

TINY = Comparison(
  num_texts=900,
  vocab=600,
  width=16,
  layers=1,
  sft_steps=6,
  sft_rows=4,
  max_completion_tokens=10,
  num_pairs=40,
  rows=2,
  seeds=(0, 1),
  eval_prompts=8,
  tune_prompts=8,
  eval_samples=2,
  pool=16,
  rounds=2,
  only="dpo,tdpo2",
)


def made(stats, layout=Layout.PAIR, fields=()):
  return Objective(
    name="made",
    hparams={},
    layout=layout,
    stats=frozenset(stats),
    loss=None,
    columns=frozenset(fields),
  )


def reads_two_starts():
  other = TokenStat("minus_logp_BKT", ("ref_minus",), token_stats.REF_LOGP.fn)
  return made({token_stats.LOGP, other})


def reads_old_logp():
  return made({token_stats.LOGP}, fields={"old_logp_BKT"})


def reads_a_reward_of_pairs():
  return made({token_stats.LOGP}, fields={"reward_BK"})


def reads_a_reward_of_answers():
  return made(
    {token_stats.LOGP, token_stats.VALUE},
    Layout.RATED,
    {"reward_BK", "desirable_BK"},
  )


def reads_lists():
  return made({token_stats.LOGP}, Layout.RANKED)


def has_no_defaults(weight):
  return made({token_stats.LOGP})


@pytest.mark.parametrize(
  "factory, reason",
  [
    (reads_two_starts, "another frozen model: ref_minus"),
    (reads_old_logp, "data columns that pairs do not give: old_logp_BKT"),
    (reads_a_reward_of_pairs, "reward_BK"),
    (reads_lists, "layout RANKED: pairs do not lead there"),
    (has_no_defaults, "needs a value for its hyperparameter weight"),
  ],
)
def test_who_cannot_be_trained_on_pairs_is_left_out_with_the_reason(factory, reason):
  assert reason in comparison_settings.barrier(f"{__name__}:{factory.__name__}")


def test_who_can_be_trained_on_pairs_takes_part():
  assert comparison_settings.barrier(f"{__name__}:reads_a_reward_of_answers") is None
  for name in ("sft", "dpo", "kto", "tdpo2"):
    assert comparison_settings.barrier(name) is None
  assert "probability of an answer" in comparison_settings.barrier("bradley_terry")


@pytest.mark.parametrize("factor, power", [(1e7, 2.0), (1e3, 1.5), (3e9, 2.3)])
def test_search_puts_runs_around_every_matched_kl(factor, power):
  def kl(rate):
    found = factor * rate**power
    return math.inf if found > 50 else found

  tried, rates = {}, [1e-4, 1e-3]
  for _ in range(4):
    tried |= {rate: kl(rate) for rate in rates}
    rates = learning_rates.next_rates(tried, (0.35, 0.9, 1.8, 3.2), 2)
  for target in (0.35, 0.9, 1.8, 3.2):
    assert min(abs(math.log(x / target)) for x in tried.values()) < 0.2


def test_search_halves_the_way_to_a_run_that_diverged():
  rate = learning_rates.rate_at({1e-4: 0.1, 1e-2: math.inf}, 1.0)
  assert rate == pytest.approx(1e-3)


def test_search_does_not_run_a_rate_twice_where_targets_are_out_of_reach():
  wanted, other = learning_rates.next_rates({1e-4: 1e-6}, (0.35, 0.9, 3.2), 2), 3e-3
  assert wanted == pytest.approx([other, other])  # as far as it goes, for all of them
  near = learning_rates.next_rates({1e-4: 0.01, 1e-3: 0.02}, (0.03, 1e5, 1e6), 2)
  assert near[0] == pytest.approx(3e-2) and near[1] < 3e-3


def test_search_stays_within_its_bounds():
  assert learning_rates.rate_at({1e-2: 1e-6}, 1.0) == learning_rates.MOST
  assert learning_rates.rate_at({1e-6: math.inf}, 1.0) == learning_rates.LEAST


def entry(name, kls, rewards, seeds=(0, 1), error=None):
  """Runs of constant KL and reward; a KL of None is a run that diverged."""
  trials = [
    Trial(0.1, seed, None, (), (), 3)
    if kl is None
    else Trial(kl, seed, kl, (reward,) * 4, (kl,) * 4)
    for seed in seeds
    for kl, reward in zip(kls, rewards, strict=True)
  ]
  return ComparedObjective(
    name, {"name": name}, "pairs", "code", trials, {"in all": 1.0}, error
  )


def test_reward_is_read_between_runs_and_never_beyond():
  both = entry("a", (0.25, 0.75, 1.75), (0.1, 0.3, 0.7))
  assert both.at(0.5).mean == pytest.approx(0.2)
  assert both.at(1.25).mean == pytest.approx(0.5)
  assert both.at(2.5) == "not reached"
  assert entry("b", (0.25, 0.75, None), (0.1, 0.3, 0)).at(2.5) == "diverged"
  assert entry("c", (None, None), (0, 0)).at(0.5) == "diverged"
  assert both.minus(entry("d", (0.0, 1.0), (0.0, 0.1)), 0.5).mean == pytest.approx(0.15)
  assert both.minus(entry("e", (0.0, 0.1), (0.0, 0.1)), 0.5) is None


def test_entry_survives_its_file(tmp_path):
  one = entry("a", (0.25, None), (0.1, 0))
  comparison_settings.write(tmp_path / "a.json", one)
  assert comparison_settings.read(tmp_path / "a.json") == one
  assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_page_sorts_by_reward_and_says_what_is_missing():
  entries = [
    entry("low", (0.25, 3.0), (0.1, 0.3)),
    entry("short", (0.25, 0.75), (0.5, 0.9)),
    entry("dpo", (0.25, 3.0), (0.2, 0.6)),
    entry("wild", (0.25, 0.75, None), (0.1, 0.3, 0)),
    entry("broken", (), (), error="ValueError: of its own"),
  ]
  pool = np.random.default_rng(0).normal(size=(4, 64))
  counts = {"parameters": 10}
  left_out = {"ppo": "needs rollouts"}
  found = train_objectives.ComparisonResult(
    TINY, "texts", counts, None, pool, entries, left_out, {}
  )
  shown = comparison_page.lines(found)
  assert [line.entry.name for line in shown] == ["dpo", "low", "short", "wild"]
  rows = {row[0]: row for row in comparison_page.table(found, shown).rows}
  assert rows["short"][2:] == [str(shown[2].rewards[0]), *["not reached"] * 2, ""]
  assert rows["wild"][3:5] == ["diverged", "diverged"]
  assert rows["low"][5].startswith("**-0.1")  # (1.3 - 0.25) / 2.75 of 0.2 and 0.4
  held = comparison_page.build(found, shown, "the command")
  text = str(held)
  for part in ("of its own", "needs rollouts", "the command"):
    assert part in text


@pytest.fixture(scope="module")
def searches():
  """Names of the objectives that were trained since it was last cleared."""
  return []


@pytest.fixture(scope="module")
def stages(tmp_path_factory, searches):
  """DPO alone; then with TDPO2, which fails; then again, and it does not."""
  run_dir, original = tmp_path_factory.mktemp("runs") / "run", train_objectives._search
  devices = jax.local_devices()[:2]
  fails = [None, "tdpo2", None]
  out = []

  def search(comparison, use, *rest):
    searches.append(use.name)
    if use.name == fails[len(out)]:
      raise TypeError("not today\nsecond line")
    return original(comparison, use, *rest)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train_objectives, "_search", search)
    patch.setattr(jax, "local_devices", lambda: devices)  # fewer to compile for
    for only in ("dpo", "dpo,tdpo2", "dpo,tdpo2"):
      settings = dataclasses.replace(TINY, only=only)
      searches.clear()
      found = train_objectives.run(settings, run_dir, lambda line: None)
      out.append((found, list(searches)))
  return run_dir, out


def test_each_objective_is_trained_once_however_often_the_comparison_is(stages):
  _, out = stages
  assert [names for _, names in out] == [["dpo"], ["tdpo2"], ["tdpo2"]]
  assert out[0][0].entries[0] == out[2][0].entries[0]


def test_objective_with_an_error_does_not_stop_the_others(stages):
  _, out = stages
  failed = out[1][0].entries[1]
  assert failed.error == "TypeError: not today" and failed.trials == []
  assert out[2][0].entries[1].error is None


def test_every_seed_searches_and_every_run_is_judged(stages):
  _, out = stages
  for one in out[2][0].entries:
    assert [t.seed for t in one.trials] == [0, 0, 1, 1] * 2  # two rounds of two rates
    assert [t.learning_rate for t in one.trials[:2]] == list(TINY.first_learning_rates)
    assert all(len(run.reward_P) == TINY.eval_prompts for run in one.points())
    kl = {t.learning_rate: t.tune_kl for t in one.trials if t.seed == 0}
    assert kl[1e-4] < kl[1e-3]


def test_another_setting_is_not_mixed_in(stages):
  run_dir, _ = stages
  other = dataclasses.replace(TINY, num_pairs=41)
  with pytest.raises(ValueError, match="num_pairs: 40 -> 41"):
    train_objectives.run(other, run_dir)
  with pytest.raises(ValueError, match="holds no comparison"):
    train_objectives.run(other, run_dir.parent)


def test_command_writes_page_and_plot(stages, monkeypatch, capsys):
  run_dir, _ = stages
  recipe = find_recipe.Recipe(TINY, compare_objectives.run)
  monkeypatch.setattr(find_recipe, "load", lambda name, words: recipe)
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
  assert cli.main(["compare-objectives", "--run-dir", str(run_dir)]) == 0
  assert "tdpo2" in capsys.readouterr().out
  assert (run_dir / comparison_page.PLOT).read_text().startswith("<svg")
  assert "tdpo2" in (run_dir / "report.html").read_text()
  assert comparison_page.PLOT in (run_dir / "report.md").read_text()
  about = json.loads((run_dir / "comparison.json").read_text())
  assert about["comparison"]["num_pairs"] == TINY.num_pairs


def test_recipe_takes_a_file_of_sentences():
  own = find_recipe.load("compare_objectives").experiment
  assert own.objective("dpop") == ObjectiveConfig("dpop", beta=0.1)  # as recorded
  assert own.objective("dpo") == ObjectiveConfig("dpo")
  assert dataclasses.replace(own, configured=()) == Comparison()
  own = find_recipe.load("compare_objectives", ["source=texts.jsonl"]).experiment
  assert own.source == "texts.jsonl" and own.num_texts is None


def test_unknown_objective_is_refused_with_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'tdpo2'"):
    Comparison(only="dpo,tdpo_2")


def test_configured_objective_that_is_not_compared_is_refused():
  own = ObjectiveConfig("xpo_jax.objectives._gpo:gpo", link="logistic")
  with pytest.raises(ValueError, match=r"_gpo:gpo.*did you mean .*_ipo:ipo"):
    Comparison(only="dpo,xpo_jax.objectives._ipo:ipo", configured=(own,))
  hparams = ObjectiveConfig("tdpo1", beta=0.3)
  assert Comparison(only="dpo", configured=(hparams,)).names() == ("dpo",)
  with pytest.raises(ValueError, match="'tdpo1' twice"):
    Comparison(configured=(hparams, hparams))


def test_run_that_overflows_counts_as_diverged():
  class Overflowing:
    def draws(self, params, seed, rewarded=True):
      kl_PK = np.full((2, 2), np.nan)
      return type("Draws", (), {"kl_PK": kl_PK, "reward_PK": np.zeros((2, 2))})

  outcome = vectorised_runs.Outcome({}, {"loss": np.zeros(5), "grad_norm": np.ones(5)})
  (trial,) = train_objectives._judge(
    [(0, 1e-2)], [outcome], Overflowing(), Overflowing()
  )
  assert trial == Trial(1e-2, 0, None, (), (), 5)
