"""Recipes of several stages in miniature: what a stage sees, and that they resume."""

import dataclasses
import functools
import json
import math
import re
import zlib

import jax
import numpy as np
import pytest

from tests.studies.tiny_world import TINY
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import AuxLossConfig
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data import synthetic_reviews, tokenise
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback import reward_model
from xpo_jax.models import heads, hf_checkpoint, lora
from xpo_jax.models.lora import Adapter
from xpo_jax.studies import find_recipe, synthetic_world
from xpo_jax.studies.multistage import stage_samples, staged
from xpo_jax.studies.multistage.staged import Sampled
from xpo_jax.studies.multistage.staged_world import World
from xpo_jax.train import loading, metrics, rollouts
from xpo_jax.train import online as online_loop
from xpo_jax.types import Layout

SMALLER = {
  "rso": {"candidates": 4, "kept": 2},
  "slic_sample_rank": {"candidates": 4},
  "sdpo": {},
  "best_of_n": {"ns": (1, 2), "pool": 2, "distilled": 2},
  "paft": {"adapter": Adapter(rank=2, targets="query|up"), "l1": (1e-3,)},
  "instructgpt": {"texts": 10, "gammas": (0.0, 2.0)},
  "iterated_rlhf": {"rounds": 2, "comparisons": 4, "iterations": 2, "every": 2},
}
ROLLOUTS = rollouts.Rollouts(
  iteration=0,
  row_B=np.array([0]),
  prompts=("the plot is",),
  texts_BK=((" good.", " bad."),),
  examples=(
    Example("0", np.array([0, 5]), (np.array([6]), np.array([7])), Layout.SAMPLED),
  ),
  logp=((np.zeros(1, np.float32), np.zeros(1, np.float32)),),
  ended_BK=np.array([[True, True]]),
  reward_BK=np.array([[1.0, 0.0]], np.float32),
)


def _reward(texts) -> np.ndarray:
  """Of any text, for the tiny model writes nothing that a lexicon knows."""
  return np.array([zlib.crc32(t.encode()) % 997 / 997 for t in texts], np.float32)


@functools.cache
def _start(config):
  texts = ["".join(text) for text in synthetic_reviews.generate(200, seed=0)]
  model = staged.transformer.model(config)
  params = {"lm": jax.jit(model.init)(jax.random.key(0))}
  return hf_checkpoint.Checkpoint(
    config, params, synthetic_reviews.train_bpe(texts, config.vocab)
  )


@pytest.fixture
def stages(monkeypatch):
  """Stages that train nothing and are remembered: (name, objective, rows, how)."""
  seen = []

  def stage(lab, name, objective, rows, **how):
    seen.append((name, objective, list(rows), how))
    return lab.start

  def reward(lab, name, rows, **how):
    seen.append((name, how.pop("objective", None), list(rows), how))
    directory = lab.run_dir / name
    head = heads.init_reward_head(jax.random.key(1), TINY.width)
    params = lab.start.params | {"value": head}
    hf_checkpoint.save(
      directory, lab.start.config, params, tokenizer=lab.start.tokenizer
    )
    limits = tokenise.Limits(completion=TINY.longest)
    reward_model.write_description(directory, tokenise.Template(), limits)
    return directory

  def online(lab, name, objective, **how):
    seen.append((name, objective, None, how))
    for step in range(1, how["iterations"] + 1):
      path = lab.run_dir / name / online_loop.ROLLOUTS / f"{step:06d}.jsonl"
      rollouts.write(path, dataclasses.replace(ROLLOUTS, iteration=step - 1))
    lines = [{"step": 1, "rollout/kl": 1.0}, {"step": 2, "rollout/kl": 3.0}]
    (lab.run_dir / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return lab.start

  def change(lab, name):
    adapter = SMALLER["paft"]["adapter"]
    shapes = lora.weights(lab.model.config, adapter)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = {
      part: {x: rng.normal(size=weight.shape) for x, weight in pair.items()}
      for part, pair in shapes["blocks"].items()
    }
    noise = jax.tree.map(np.float32, {"blocks": noise})
    return lora.delta(noise, adapter)

  start = property(lambda lab: _start(lab.model.config))
  monkeypatch.setattr(staged.Lab, "start", start)
  monkeypatch.setattr(staged.Lab, "stage", stage)
  monkeypatch.setattr(staged.Lab, "policy", lambda lab, stage: lab.start)
  monkeypatch.setattr(staged.Lab, "reward", reward)
  monkeypatch.setattr(staged.Lab, "online", online)
  monkeypatch.setattr(staged.Lab, "change", change)
  monkeypatch.setattr(synthetic_reviews, "true_reward", _reward)
  return seen


def _run(name, run_dir, world=TINY):
  recipe = find_recipe.load(name)
  small = dataclasses.replace(recipe.experiment, world=world, **SMALLER[name])
  assert recipe.run(small, run_dir) == 0
  rows = json.loads((run_dir / staged.RESULTS).read_text())
  for row in rows:
    assert math.isfinite(row["reward"]["mean"]) and row["kl"]["mean"] >= -1e-6
  return {row["label"]: row for row in rows}


def _assert_better_is_chosen(rows):
  for row in rows:
    chosen, rejected = _reward([row.prompt + row.chosen, row.prompt + row.rejected])
    assert chosen > rejected


def test_rso_trains_on_pairs_of_accepted_samples(stages, tmp_path):
  rows = _run("rso", tmp_path / "run")
  assert set(rows) == {"SFT", "RSO, sigmoid-norm", "RSO, hinge-norm", "sft-sample-rank"}
  (_, one, accepted, _), (_, two, again, _), (_, three, first, _) = stages
  assert one == three == ObjectiveConfig("rso", beta=0.05)
  assert two == ObjectiveConfig("rso", beta=0.05, link="hinge")
  assert accepted == again and accepted != first
  assert 0 < len(accepted) <= 8  # kept = 2: one pair a prompt
  _assert_better_is_chosen(accepted + first)


def test_sample_rank_makes_a_tournaments_pairs_and_a_best_worst_one(stages, tmp_path):
  _run("slic_sample_rank", tmp_path / "run")
  (_, one, duels, _), (_, two, extremes, _) = stages
  assert one == two == ObjectiveConfig("slic", delta=1.0, weight=0.1)
  assert 8 < len(duels) <= 8 * 3 and len(extremes) <= 8
  _assert_better_is_chosen(duels + extremes)
  best = {row.prompt: row.chosen for row in extremes}
  champions = {row.prompt: row.chosen for row in duels}  # of the last duel
  assert all(champions[prompt] == answer for prompt, answer in best.items())


def test_sdpo_starts_each_stage_where_the_one_before_ended(stages, tmp_path):
  rows = _run("sdpo", tmp_path / "run")
  assert {"sDPO, easy first", "sDPO, hard first", "DPO"} < set(rows)
  starts = {name: how.get("start") for name, _, _, how in stages}
  assert starts["easy-first-0-stage-1"] == staged.SFT
  assert starts["easy-first-0-stage-2"] == "easy-first-0-stage-1"
  data = {name: rows for name, _, rows, _ in stages}
  first, second = (data[f"easy-first-0-stage-{i}"] for i in (1, 2))
  assert data["hard-first-0-stage-1"] == second
  assert sorted(r.uid for r in first + second) == sorted(
    r.uid for r in data["dpo-0.3-0"]
  )
  assert stages[-1][1] == ObjectiveConfig("dpo", beta=0.15)


def test_best_of_n_has_its_exact_kl(stages, tmp_path):
  rows = _run("best_of_n", tmp_path / "run")
  assert rows["best of 1"]["kl"]["mean"] == pytest.approx(0, abs=1e-12)
  # Of two answers the better is drawn 3 times in 4; of two that tie either: 0 nats.
  apart = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
  share = rows["best of 2"]["kl"]["mean"] / apart * TINY.prompts
  assert share == pytest.approx(round(share), abs=1e-6) and 1 <= round(share) <= 3
  assert rows["best of 2"]["reward"]["mean"] >= rows["best of 1"]["reward"]["mean"]
  ((_, objective, answers, _),) = stages
  assert objective == ObjectiveConfig("sft") and 0 < len(answers) <= 8


def test_paft_trains_both_changes_on_the_base_and_merges_them(stages, tmp_path):
  rows = _run("paft", tmp_path / "run")
  merges = ("linear", "task arithmetic", "TIES", "DARE", "DARE-TIES")
  assert {f"{name}, l1 0.001" for name in merges} < set(rows)
  (_, dpo, _, apart), (_, sft, demos, sparse), (_, _, _, after) = stages
  assert (dpo.name, sft.name) == ("dpo", "sft")
  assert apart["adapter"].l1 == 0 and sparse["adapter"].l1 == 1e-3
  assert "start" not in apart | sparse and after["start"] == "sft-l1-0.001-0"
  assert all("," in row.completion or " and the " in row.completion for row in demos)
  assert 0 < rows["TIES, l1 0.001"]["conflicts"] < 1
  assert rows["DPO"]["skill_nll"] != rows["linear, l1 0.001"]["skill_nll"]


def test_instructgpt_ranks_the_starts_samples_and_learns_from_a_reward_model(
  stages, tmp_path
):
  rows = _run("instructgpt", tmp_path / "run")
  assert list(rows) == ["SFT", "PPO", "PPO-ptx, gamma 2", "PPO, beta 2"]
  for row in rows.values():
    assert row["reward model"]["mean"] != row["reward"]["mean"]
    assert row["other_nll"]["mean"] > 0
  (both, *_), (name, kwise, ranked, how), plain, ptx, strict = stages
  assert (kwise, how["start"]) == (ObjectiveConfig("kwise"), both)
  for one in ranked:
    assert len(set(one.completions)) == len(one.completions) >= 2
    assert len(set(one.rewards)) == len(one.rewards)
  assert [one[1].hparams["beta"] for one in (plain, ptx, strict)] == [0.2, 0.2, 2.0]
  for _, _, _, how in (plain, ptx, strict):
    assert how["start"] == both
    assert how["feedback"].source.hparams["directory"] == how["critic_init"]
    assert how["critic_init"].endswith(name)
  assert plain[3]["parts"] == strict[3]["parts"] == ()
  (part,) = ptx[3]["parts"]
  assert (part.weight, part.objective) == (2.0, ObjectiveConfig("sft"))
  learned = ptx[3]["datasets"][part.data.path]
  assert len(learned) == 10


def test_instructgpt_holds_out_prompts_of_the_other_text():
  learned, held = find_recipe.load("instructgpt").run.__globals__["_sequels"](500)
  assert len(learned) == 500 and len({row.prompt for row in held}) == len(held)
  assert not {row.prompt for row in learned} & {row.prompt for row in held}
  # All that is to be known of the text can be learned: each beginning is there.
  beginnings = [{row.completion for row in rows} for rows in (learned, held)]
  assert beginnings[1] <= beginnings[0]


@pytest.mark.parametrize("name", ["sdpo", "best_of_n", "rso", "slic_sample_rank"])
def test_every_stage_of_a_seed_draws_with_it(name, stages, tmp_path):
  _run(name, tmp_path / "run", dataclasses.replace(TINY, seeds=(1, 2)))
  for stage, _, _, how in stages:
    assert how["seed"] == int(re.search(r"-([12])(-stage-\d+)?$", stage)[1])


def test_iterated_rlhf_adds_to_all_older_labels_and_starts_from_scratch(
  stages, tmp_path
):
  rows = _run("iterated_rlhf", tmp_path / "run")
  assert list(rows) == ["SFT", "round 1", "round 2", "at once"]
  assert {"train score", "test score"} < set(rows["round 2"])
  seen = {name: (rows, how) for name, _, rows, how in stages}
  halves = {}
  for label in ("round-1-0", "round-2-0", "at-once-0"):
    train_rows, test_rows = (
      {(row.prompt, row.chosen, row.rejected) for row in seen[f"{half}-{label}"][0]}
      for half in ("train-reward", "test-reward")
    )
    assert train_rows and test_rows and not train_rows & test_rows
    halves[label] = train_rows | test_rows
    judge = seen[label][1]["feedback"].source.hparams["directory"]
    assert judge.endswith(f"train-reward-{label}")
    assert not any("start" in seen[name][1] for name in seen)
  assert halves["round-1-0"] < halves["round-2-0"]
  assert len(halves["at-once-0"]) <= 8


def test_ties_and_wordless_answers_make_no_pair():
  texts = [["good", "bad", " ", "fine"]]
  sampled = Sampled(["x"], texts, np.array([[1.0, 0.0, 2.0, 1.0]]))
  made = stage_samples.pairs(
    sampled,
    np.array([[0, 2, 0, 3]]),
    np.array([[1, 1, 3, 1]]),
    np.array([[1, 1, 1, 0]]),
  )
  assert [(pair.chosen, pair.rejected) for pair in made] == [("good", "bad")]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of a recipe with nothing but a world."""

  world: World = TINY


def _quiet(text):
  del text


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  """A directory in which the SFT model is really trained."""
  made = staged.Lab(Settings(), tmp_path_factory.mktemp("labs") / "run", _quiet)
  assert made.start
  return made


def _pairs(lab):
  both = zip(
    lab.demonstrations["train"][:6], lab.demonstrations["train"][6:], strict=False
  )
  return [
    staged.records.Pair(f"pair {i}", row.prompt, row.completion, other.completion)
    for i, (row, other) in enumerate(both)
  ]


def test_stages_train_are_read_back_and_stand_at_their_own_reference(lab, tmp_path):
  rows = _pairs(lab)
  use = ObjectiveConfig("dpo", beta=0.5)
  lab.stage("one", use, rows, rate=1e-2)
  two = lab.stage("two", use, rows, start="one", rate=1e-2)
  for name in ("one", "two"):
    first = metrics.read(lab.run_dir / name)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
  begun = len(metrics.read(lab.run_dir / "two"))
  again = staged.Lab(Settings(), lab.run_dir, _quiet)
  same = again.stage("two", use, rows, start="one", rate=1e-2)
  jax.tree.map(np.testing.assert_array_equal, same.params, two.params)
  assert len(metrics.read(lab.run_dir / "two")) == begun
  other = Settings(dataclasses.replace(TINY, rate=1.0))
  with pytest.raises(ValueError, match=r"settings changed\n  world\.rate: "):
    staged.Lab(other, lab.run_dir)
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "file").write_text("mine")
  with pytest.raises(ValueError, match="holds something else"):
    staged.Lab(Settings(), tmp_path / "full")


def test_reward_of_the_start_has_mean_0_and_deviation_1(lab):
  directory = lab.reward("judge", _pairs(lab), rate=1e-2)
  score = reward_model.scorer(str(directory))
  drawn = lab.sample(lab.start.params, completions=1, seed=0)
  told = score(drawn.prompts, [texts[0] for texts in drawn.texts_BK]).value_N
  assert (told.mean(), told.std()) == pytest.approx((0, 1), abs=1e-3)
  written = (directory / reward_model.FILE).stat().st_mtime_ns
  assert lab.reward("judge", _pairs(lab), rate=1e-2) == directory
  assert (directory / reward_model.FILE).stat().st_mtime_ns == written


def test_online_stage_learns_from_a_reward_model_beside_text(lab):
  directory = lab.reward("judge", _pairs(lab), rate=1e-2)

  def learn():
    return lab.online(
      "rl",
      ObjectiveConfig("ppo"),
      feedback=Feedback(Configured(reward_model.scorer, directory=str(directory))),
      datasets={"text": lab.demonstrations["train"][:8]},
      sampling=Sampling(completions=2, max_completion_tokens=TINY.longest),
      iterations=2,
      prompts_per_iteration=4,
      optimizer=Optimizer(learning_rate=1e-2),
      evaluation=Evaluation(),
      aux_losses=(AuxLossConfig(3.0, ObjectiveConfig("sft"), lab.data("text")),),
    )

  first = learn()
  jax.tree.map(np.testing.assert_array_equal, learn().params, first.params)
  one, two = metrics.read(lab.run_dir / "rl")
  # The first samples are the reference's own: rewards of mean 0 and deviation 1.
  assert one["rollout/kl"] == pytest.approx(0, abs=1e-4)
  assert abs(one["rollout/reward"]) < 4 / math.sqrt(8)
  assert two["rollout/kl"] != one["rollout/kl"]
  # A model of two steps knows nothing yet: log(vocabulary) a token, three times.
  (text,) = (x for name, x in one.items() if name.startswith("loss/text/"))
  assert text == pytest.approx(3 * math.log(TINY.vocab), rel=0.1)


def test_lab_and_single_runs_share_start_and_prompts(lab):
  one = synthetic_world.run(ObjectiveConfig("rloo"), TINY)
  assert yaml_file.read(lab.run_dir / staged.SFT)[0] == one.start.experiment
  for source, part in ((one.prompts, "train"), (one.evaluation, "test")):
    every = dataclasses.replace(source, limit=None)
    assert loading.load(every, one.prompts, {}).records == tuple(
      lab.demonstrations[part]
    )
