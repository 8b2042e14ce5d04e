"""What a recipe will compute, found without a step of it."""

import dataclasses
import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tests.train.tiny_runs import ADAPTED, MODEL, PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import Experiment, MeshShape, Scratch, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Precision
from xpo_jax.config.sampling import Feedback
from xpo_jax.data.records import Demonstration, Prompt, Rated
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import reward_model
from xpo_jax.train import loop, preflight, rollouts

SFT = Experiment(
  ObjectiveConfig("sft"),
  Data("demos", rows_per_step=4, row_length=192),
  Scratch(MODEL),
  mesh=MeshShape(data=1),
)
REWARD = Experiment(
  ObjectiveConfig("bradley_terry"),
  Data("pairs", rows_per_step=4, row_length=192),
  Stage(SFT),
  mesh=MeshShape(data=1),
)


def test_step_of_the_adapters_is_compiled(datasets):
  (budget,) = preflight.check(ADAPTED, datasets=datasets)
  assert budget.bytes["arguments"] > 4 * budget.sizes["parameters"]
  first = f"first rows, loss in [ ]:\n    prompt: {budget.shown[0][0].text}"
  assert first in "\n".join(preflight.lines(budget))


def test_base_in_bfloat16_takes_two_bytes_a_weight_of_its_matrices(datasets):
  half = experiments.replace(ADAPTED, precision=Precision(base="bfloat16"))
  wide, narrow = preflight.check(ADAPTED, half, datasets=datasets)
  saved = wide.bytes["arguments"] - narrow.bytes["arguments"]
  D, F, layers = 12, 16, 2
  assert saved == 2 * (320 * D + layers * (4 * D * D + 3 * D * F))


def test_memory_of_the_step_is_that_of_its_remat(datasets):
  temporaries = {}
  for remat in ("none", "full"):
    model = dataclasses.replace(MODEL, layers=6, remat=remat)
    run = experiments.replace(ADAPTED, start=Scratch(model))
    (budget,) = preflight.check(run, datasets=datasets)
    assert f"  remat {remat}" in preflight.lines(budget)
    temporaries[remat] = budget.bytes["temporaries"]
  assert temporaries["full"] < temporaries["none"]


def test_rows_lengths_repeats_and_overlap_are_shown(tmp_path):
  """Ten rows of one known length each, but for the last; the tokenizer is of words."""
  words = Tokenizer(WordLevel({w: i for i, w in enumerate(["<eos>", *"abcdefghij"])}))
  words.pre_tokenizer = WhitespaceSplit()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
  tokenizer.save_pretrained(tmp_path / "words")
  rows = [
    Demonstration(str(i), "a " * 2 + letter, " b" * 3)
    for i, letter in enumerate("abcdefgh")
  ]
  rows += [rows[0], Demonstration("long", "a b c d e", " j" * 9)]
  held_out = [Demonstration("h1", "a a a", " c"), Demonstration("h2", "j", " c")]
  run = Experiment(
    ObjectiveConfig("sft"),
    Data("rows", rows_per_step=4, limits=Limits(prompt=4, completion=8)),
    Scratch(MODEL, str(tmp_path / "words")),
    mesh=MeshShape(data=1),
    evaluation=Evaluation("held_out"),
  )
  run = experiments.replace(run, bad_rows="drop")
  datasets = {"rows": rows, "held_out": held_out}
  (budget,) = preflight.check(run, datasets=datasets)
  said = preflight.lines(budget)
  for line in (
    "  rows 10, kept 9, dropped 1 (over-long prompt 1)",
    "  truncated prompts 0, truncated completions 0, repeated rows 1, "
    "repeated prompts 1",
    "  held-out prompts 2, also trained on 1",
    "  prompt tokens: p50 3, p90 3, p99 5, max 5; limit 4: 1 over it",
    "  completion tokens: p50 4, p90 4, p99 10, max 10; limit 8: 1 over it",
    "  rows that repeat an earlier row: 1",
  ):
    assert line in said
  shown = said[said.index("  first rows, loss in [ ]:") + 1 :]
  assert len(shown) == 2 * preflight.SHOWN
  assert shown[0].startswith("    prompt: aa")
  assert shown[1] == "    completion 1: [bbb<eos>]"


def test_what_is_not_read_and_what_is_adapted_is_said():
  rows = [
    Rated(str(i), f"the film {i} was", " good.", desirable=True) for i in range(8)
  ]
  run = experiments.replace(
    ADAPTED,
    objective=ObjectiveConfig("kto"),
    path="rows",
    steps=None,
    evaluation=Evaluation(),
  )
  (budget,) = preflight.check(run, datasets={"rows": rows})
  said = "\n".join(preflight.lines(budget))
  assert "no row is undesirable" in said
  assert "adapters on: query, value, up" in said


def test_dropped_rows_are_named_where_the_others_do_not_serve(tmp_path):
  good = {"prompt": "the film was", "completion": " good.", "reward": 1.0}
  path = tmp_path / "rows.jsonl"
  path.write_text(f"{json.dumps(good)}\n{json.dumps(good | {'reward': 10**400})}\n")
  data = Data(str(path), bad_rows="drop", rows_per_step=1)
  run = Experiment(ObjectiveConfig("bco"), data, Scratch(MODEL), mesh=MeshShape(data=1))
  message = r"bco reads desirable_BK(?s:.*)dropped rows\.jsonl:2: number too large"
  with pytest.raises(ValueError, match=message):
    preflight.check(run)


def test_rows_beyond_learned_positions_are_refused_before_a_step(datasets):
  learned = dataclasses.replace(MODEL, rotary=None, positions=12)
  run = experiments.replace(SFT, start=Scratch(learned))
  message = r"more tokens than the 12 positions of the start: .* has \d+; set"
  with pytest.raises(ValueError, match=message):
    preflight.check(run, datasets=datasets)
  rotary = dataclasses.replace(MODEL, positions=12)
  run = experiments.replace(SFT, start=Scratch(rotary))
  (budget,) = preflight.check(run, datasets=datasets)
  assert "more tokens than the start's positions" in "\n".join(preflight.lines(budget))


def test_prompts_that_do_not_fit_a_tokenizer_made_there_are_refused():
  """A prompt of BOS and a letter is longer than the one token known before."""
  datasets = {"rows": [Prompt("0", "x")]}
  five = dataclasses.replace(MODEL, rotary=None, positions=5)
  run = experiments.replace(PLAIN, prompts=Prompts("rows"), start=Scratch(five))
  loop.check(run, datasets)
  with pytest.raises(ValueError, match=r"of 2 tokens that is 6, .* 5 positions"):
    preflight.check(run, datasets=datasets)


def test_stages_have_budgets_of_their_own_equal_ones_once(datasets, monkeypatch):
  monkeypatch.setattr(rollouts, "draw", None)  # nothing is sampled
  judge = Configured(reward_model.scorer, directory=Stage(REWARD))
  run = experiments.replace(
    PLAIN,
    objective=ObjectiveConfig("ppo"),
    start=Stage(SFT),
    feedback=Feedback(judge),
    critic_init=Stage(REWARD),
  )
  names = [budget.name for budget in preflight.check(run, datasets=datasets)]
  assert [name.partition("(")[0] for name in names] == ["sft", "bradley_terry", "ppo"]


def never(policy: str):
  """Makes records of a policy; a check must not."""
  raise AssertionError(policy)


@pytest.mark.parametrize(
  "start", [Scratch(MODEL), Stage(SFT)], ids=["scratch", "stage"]
)
def test_data_of_a_function_are_not_made(datasets, start):
  made = experiments.replace(
    SFT, path=Configured(never, policy=Stage(REWARD)), start=start
  )
  *_, budget = preflight.check(made, datasets=datasets)
  assert budget.sizes["parameters"] > 0 and budget.bytes is None
  assert "not checked" in "\n".join(preflight.lines(budget))


def test_what_training_would_refuse_is_refused(datasets):
  short = experiments.replace(SFT, row_length=9)
  with pytest.raises(ValueError, match="row_length: 9 is shorter"):
    preflight.check(experiments.replace(REWARD, start=Stage(short)), datasets=datasets)
