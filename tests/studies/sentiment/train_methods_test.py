"""The study in miniature: labels, one compile for a sweep, checks that can fail."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests import compiling
from xpo_jax import cli
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import records, synthetic_reviews
from xpo_jax.data.formats import tfds
from xpo_jax.evaluation import bootstrap
from xpo_jax.models import config, hf_checkpoint, transformer
from xpo_jax.studies import demo
from xpo_jax.studies.sentiment import findings as findings
from xpo_jax.studies.sentiment import labelled_pairs, train_methods
from xpo_jax.studies.sentiment.settings import Arm, OnlineArm, SentimentStudy
from xpo_jax.train import rollouts

TINY = SentimentStudy(
  num_texts=900,
  vocab=600,
  width=16,
  layers=1,
  sft_steps=6,
  sft_rows=4,
  max_completion_tokens=10,
  num_pairs=40,
  rows=2,
  arms=(Arm("DPO", ObjectiveConfig("dpo"), (0.5, 2.0)),),
  online=(
    OnlineArm(
      "RLOO", ObjectiveConfig("rloo"), (1, 2), prompts_per_iteration=4, completions=2
    ),
  ),
  seeds=(0, 1),
  control_beta=0.5,
  eval_prompts=8,
  eval_samples=2,
  pool=8,
)


@pytest.fixture(scope="module")
def beginning():
  return train_methods.prepare(TINY)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def result(beginning, run_dir):
  return train_methods.run(beginning, run_dir, say=lambda line: None)


@pytest.fixture
def pairs():
  rng = np.random.default_rng(0)
  answers = [
    tuple(rng.integers(3, 9, size=(2, 3)).astype(np.int32)) for _ in range(4000)
  ]
  reward = rng.normal(scale=0.5, size=(4000, 2))
  return labelled_pairs.SampledPairs([np.array([0])] * 4000, answers, reward, 0)


def _gaps(pairs, kind):
  labelled = labelled_pairs.label(pairs, 0.25, (0, 0), kind)
  reward = pairs.in_order(labelled)
  return reward[:, 0] - reward[:, 1]


def test_labels_agree_with_the_true_order_as_often_as_bradley_terry_says(pairs):
  right = (_gaps(pairs, "true") > 0).mean()
  expected = synthetic_reviews.expected_accuracy(*pairs.reward_P2.T, 0.25)
  assert right == pytest.approx(expected, abs=0.02)


def test_flipped_labels_are_the_true_ones_turned_round(pairs):
  np.testing.assert_array_equal(_gaps(pairs, "flipped"), -_gaps(pairs, "true"))


def test_random_labels_know_nothing_of_the_reward(pairs):
  assert (_gaps(pairs, "random") > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_unknown_kind_of_label_is_refused(pairs):
  with pytest.raises(ValueError, match="'noisy' is none of"):
    labelled_pairs.label(pairs, 0.25, (0, 0), "noisy")


def test_no_prompt_is_in_two_splits(beginning):
  prompts = [
    {record.prompt for record in rows}
    for rows in beginning.corpus.demonstrations.values()
  ]
  assert not (
    prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
  )


def test_every_run_is_there_and_starts_at_ln_2(result):
  runs = [(r.label, r.strength, r.seed) for r in result.trained]
  dpo = [("DPO", strength, seed) for seed in (0, 1) for strength in (0.5, 2.0)]
  rest = [(kind, 0.5, seed) for kind in ("flipped", "random") for seed in (0, 1)]
  online = [("RLOO", iterations, seed) for seed in (0, 1) for iterations in (1, 2)]
  assert runs == dpo + rest + online
  for run in result.trained:
    assert run.draws.reward_PK.shape == (8, 2)
    if run.label != "RLOO":
      assert run.curve["loss"][0] == pytest.approx(np.log(2), abs=1e-5)


def test_online_points_lie_along_a_run_that_is_kept(result, run_dir):
  online = [run for run in result.trained if run.label == "RLOO"]
  for first, second in zip(online[::2], online[1::2], strict=True):
    assert [len(run.curve["rollout/reward"]) for run in (first, second)] == [1, 2]
    assert first.curve["loss"][0] == second.curve["loss"][0]  # one run, two points
    assert 0 < first.draws.kl_PK.mean() != second.draws.kl_PK.mean()
  for seed in TINY.seeds:
    drawn = rollouts.read(run_dir / f"RLOO-{seed}" / "rollouts" / "000002.jsonl")
    assert drawn.length_BK.shape == (4, 2)
    policy = hf_checkpoint.load(run_dir / f"RLOO-{seed}" / "policy").params["lm"]
    start = hf_checkpoint.load(run_dir / "sft").params["lm"]
    assert np.abs(policy["embedding"] - start["embedding"]).max() > 0


def test_points_of_an_online_arm_that_no_checkpoint_holds_are_refused():
  with pytest.raises(ValueError, match=r"\(4, 6\); each must be a multiple"):
    OnlineArm("RLOO", ObjectiveConfig("rloo"), (4, 6))


def test_controls_differ_from_the_dpo_arm_in_labels_alone():
  arm = Arm("DPO", ObjectiveConfig("dpo"), (0.5, 2.0), learning_rate=1e-6)
  study = dataclasses.replace(TINY, arms=(arm,), control_beta=2.0)
  assert study.control.hparams(2.0) == arm.hparams(2.0)
  with pytest.raises(ValueError, match=r"control_beta is 1; .* which has 0\.5, 2$"):
    dataclasses.replace(study, control_beta=1.0)


def test_sweep_over_strength_seed_and_labels_compiles_once(beginning):
  study, corpus, model, params = beginning
  judged = train_methods.PolicyEvaluator(study, corpus, model, params)
  lab = train_methods.PairTrainer(study, corpus, model, params, judged)
  with compiling.heard() as names:
    lab.train(study.arms[0], "DPO", "true")
    lab.train(study.arms[0], "flipped", "flipped")
  assert names.count("jit(train)") == 1


def test_a_point_starts_at_no_distance_and_hparams_move_it(result):
  moved = {s: _kl(result, s) for s in (0.5, 2.0)}
  assert result.sft.kl_PK == pytest.approx(0, abs=1e-5)
  assert moved[0.5] != moved[2.0] and min(moved.values()) > 0


def _kl(result, strength):
  return np.mean(
    [
      r.draws.kl_PK.mean()
      for r in result.trained
      if (r.label, r.strength) == ("DPO", strength)
    ]
  )


def test_checks_fail_where_labels_are_turned_round(result):
  def checked(label, shift):
    """The study's checks, with the rewards of one kind of run set apart from SFT's."""
    base = result.pool_PS.mean(1, keepdims=True)
    trained = []
    for run in result.trained:
      gap = (
        shift
        if run.label == label
        else {"DPO": 1.0, "flipped": -1.0}.get(run.label, 0.0)
      )
      reward = base + gap + np.zeros_like(run.draws.reward_PK)
      strength = TINY.control_beta if run.label == "DPO" else run.strength
      draws = run.draws._replace(reward_PK=reward)
      trained.append(run._replace(draws=draws, strength=strength))
    return [c.holds for c in findings.checks(result._replace(trained=trained))]

  assert checked("DPO", 1.0) == [True, True, True, True]
  assert checked("DPO", -0.1) == [False, True, True, True]
  assert checked("flipped", 0.1) == [True, False, True, True]
  assert checked("random", 0.1) == [True, True, False, True]


def test_check_of_the_first_loss_fails_on_another_loss(result):
  def wrong(run):
    loss = run.curve["loss"] + 1e-4
    strength = TINY.control_beta if run.label == "DPO" else run.strength
    return run._replace(curve=run.curve | {"loss": loss}, strength=strength)

  trained = [wrong(run) for run in result.trained]
  assert not findings.checks(result._replace(trained=trained))[-1].holds


@pytest.mark.parametrize(
  "gaps, verdict",
  [
    ([], "cannot be compared"),
    ([(0.1, 0.2)], "reproduces at 1 of 1"),
    ([(-0.2, -0.1), (-0.1, 0.1)], "does not reproduce"),
    ([(-0.1, 0.1)], "not separable"),
    ([(0.1, 0.2), (-0.2, -0.1)], "depends"),
  ],
)
def test_verdict_reads_the_intervals(gaps, verdict):
  found = [bootstrap.Interval((a + b) / 2, a, b, 0.1, 8) for a, b in gaps]
  assert findings.verdict(found).startswith(verdict)


@pytest.mark.slow
def test_real_texts_and_a_pretrained_policy_run_end_to_end(
  tmp_path, monkeypatch, capsys
):
  """IMDb's features in a TFDS directory, and a Hugging Face directory to start from."""
  texts = [
    prompt + completion for prompt, completion in synthetic_reviews.generate(300, 0)
  ]
  rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
  source = tfds.build(
    "imdb_like",
    {"train": rows},
    tfds.LABELLED_TEXT,
    source_sha256="0" * 64,
    data_dir=tmp_path,
  )
  tokenizer = synthetic_reviews.train_bpe(texts, 600)
  small = config.Config(
    vocab=len(tokenizer),
    width=16,
    layers=1,
    heads=2,
    kv_heads=2,
    head_dim=8,
    mlp_width=16,
  )
  params = {"lm": transformer.model(small).init(jax.random.key(0))}
  hf_checkpoint.save(tmp_path / "policy", small, params, tokenizer=tokenizer)
  study = dataclasses.replace(
    TINY,
    source=str(source),
    policy=str(tmp_path / "policy"),
    num_texts=None,
    prompt_words=2,
    arms=(Arm("DPO", ObjectiveConfig("dpo"), (0.5,)),),
    online=(),
    sft_steps=2,
    max_completion_tokens=16,
    num_pairs=12,
    eval_prompts=4,
  )
  code = demo.run(study, tmp_path / "run", "xpo demo")
  written = {path.name for path in (tmp_path / "run").iterdir()}
  assert {"report.html", "report.md", "frontier.svg", "runs.jsonl"} <= written
  lines = (tmp_path / "run" / "runs.jsonl").read_text().splitlines()
  assert [json.loads(line)["method"] for line in lines] == [
    *["DPO"] * 2,
    *["flipped"] * 2,
    *["random"] * 2,
  ]
  held = "DOES NOT HOLD" not in capsys.readouterr().out
  assert code == (0 if held else 1)
  with pytest.raises(ValueError, match="exists"):
    demo.run(study, tmp_path / "run", "xpo demo")


def test_bad_rows_stop_the_study_or_are_dropped_by_name(tmp_path):
  path = tmp_path / "texts.jsonl"
  texts = [
    prompt + completion for prompt, completion in synthetic_reviews.generate(300, 0)
  ]
  rows = [{"text": text} for text in [*texts, "too short"]]
  path.write_text("\n".join(map(json.dumps, rows)) + "\n")
  study = dataclasses.replace(TINY, source=str(path), num_texts=None, prompt_words=3)
  with pytest.raises(records.BadRecords, match=r"texts.jsonl:301"):
    labelled_pairs.corpus(study)
  kept = labelled_pairs.corpus(dataclasses.replace(study, bad_rows="drop"))
  assert [row.uid for row in kept.dropped] == ["texts.jsonl:301"]
  assert sum(map(len, kept.demonstrations.values())) == 300
  with pytest.raises(ValueError, match="bad_rows is 'keep'"):
    dataclasses.replace(study, bad_rows="keep")


def test_source_that_is_not_there_is_refused_by_name(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "experiments").mkdir()
  recipe = tmp_path / "experiments" / "own.py"
  recipe.write_text(
    "from xpo_jax.studies import demo\n"
    "from xpo_jax.studies.sentiment.settings import SentimentStudy\n"
    "def experiment(source):\n  return SentimentStudy(source=source)\n"
    "def run(study, run_dir):\n  return demo.run(study, run_dir, '')\n"
  )
  assert cli.main(["train", "own", "source=none.jsonl"]) == 2
  assert "none.jsonl" in capsys.readouterr().err
  assert cli.main(["train", "own"]) == 2
  assert "needs source=" in capsys.readouterr().err
  assert not (tmp_path / "runs").exists()
