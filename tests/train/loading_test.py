"""What a run reads: records by their path, prompts, its start and its reference."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests.train.tiny_runs import MODEL, PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import Experiment, MeshShape, Pretrained, Scratch
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.data import synthetic_reviews
from xpo_jax.data.records import Demonstration, Prompt
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback.teacher import Teacher
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.config import Experts
from xpo_jax.train import loading, loop, references


def _load(data, datasets=None, **more):
  return loading.load(data, data, datasets or {}, **more)


@pytest.mark.parametrize(
  ("path", "match"),
  [
    ("nowhere.jsonl", r"Data\.path is 'nowhere\.jsonl': no such file"),
    ("nowhere", r"must be a file .*, or one of the records handed over: rows"),
    ("synthetic:many", "needs a number of reviews, at least 1"),
    ("synthetic:0", "needs a number of reviews, at least 1"),
  ],
)
def test_path_of_no_known_kind_is_refused(path, match):
  with pytest.raises(ValueError, match=match):
    _load(Data(path), {"rows": []})


def test_portions_share_no_prompt_and_a_limit_cuts_them():
  rows = [Prompt(f"row {i}", f"prompt {i // 2}") for i in range(200)]
  portions = {
    name: _load(Prompts("rows", portion=name), {"rows": rows}).records
    for name in ("train", "tune", "test")
  }
  prompts = {name: {row.prompt for row in found} for name, found in portions.items()}
  assert sum(map(len, portions.values())) == 200
  assert len(set.union(*prompts.values())) == sum(map(len, prompts.values())) == 100
  assert 60 < len(prompts["train"]) < 100  # about 80 of 100
  few = _load(Prompts("rows", portion="train", limit=3), {"rows": rows}).records
  assert few == portions["train"][:3]


def counted(log: str, count: int = 2):
  """So many records that name the call that made them; each call is logged."""
  with open(log, "a") as file:
    file.write("called\n")
  with open(log) as file:
    calls = len(file.readlines())
  return [Demonstration(f"row {i}", "prompt", f" call {calls}") for i in range(count)]


def test_records_of_a_function_are_made_once_and_kept(tmp_path):
  data = Data(Configured(counted, log=str(tmp_path / "log")))
  assert not loading.is_there(data) and loading.is_there(Data("synthetic:2"))
  kept = tmp_path / loading.RECORDS
  made = _load(data, made=kept)
  again = _load(data, made=kept)
  assert made.records == again.records and made.sha256 == again.sha256
  assert [row.completion for row in again.records] == [" call 1"] * 2
  assert made.name == data.path.name
  other = _load(data)  # kept nowhere: made anew
  assert other.records != made.records and other.sha256 != made.sha256


def test_function_that_makes_no_records_is_refused(tmp_path):
  data = Data(Configured(counted, log=str(tmp_path / "log"), count=0))
  with pytest.raises(ValueError, match="counted made no records"):
    _load(data, made=tmp_path / loading.RECORDS)
  assert not (tmp_path / loading.RECORDS).exists()


def test_digest_of_files_is_of_names_and_contents(tmp_path):
  def digest(**files):
    directory = tmp_path / "files"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, text in files.items():
      (directory / name).write_text(text)
    return loading.files_digest(directory)

  digests = [digest(a="1", b="2"), digest(b="2", a="1"), digest(a="1", b="3")]
  digests += [digest(a="1", c="2"), digest(a="1")]
  assert digests[0] == digests[1] and len(set(digests)) == 4
  file = tmp_path / "file"
  file.write_text("1")
  before = loading.files_digest(file)
  file.write_text("2")
  assert before != loading.files_digest(file)


RUN = Experiment(
  ObjectiveConfig("sft"),
  Data("demos", rows_per_step=2),
  Scratch(MODEL),
  mesh=MeshShape(data=1),
)


def test_tokenizer_trained_for_a_run_is_kept_for_its_resumption(datasets, tmp_path):
  first = loading.start(RUN, tmp_path, _load(RUN.data, datasets))
  other = _load(Data("rows"), {"rows": [Demonstration("0", "zz zz", " zz zz")]})
  again = loading.start(RUN, tmp_path, other)
  assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()
  small = dataclasses.replace(MODEL, vocab=len(first.tokenizer) - 1)
  with pytest.raises(ValueError, match=r"vocab is \d+, the tokenizer has .* raise"):
    loading.start(experiments.replace(RUN, start=Scratch(small)), tmp_path, other)
  file = tmp_path / "tokenizer" / "tokenizer.json"
  file.write_bytes(file.read_bytes().replace(b"z", b"y", 1))
  with pytest.raises(ValueError, match=r"tokenizer\.json differs.*trained again"):
    loading.start(RUN, tmp_path, other)


def test_router_loss_of_a_run_goes_before_that_of_the_start(datasets, tmp_path):
  mixture = dataclasses.replace(MODEL, experts=Experts(2, 1), router_loss_coef=0.25)
  start, records = Scratch(mixture), _load(RUN.data, datasets)

  def config(**changes):
    run = experiments.replace(RUN, **{"start": start} | changes)
    return loading.start(run, tmp_path, records).config

  assert config() == mixture and not mixture.router_loss
  on = dataclasses.replace(mixture, router_loss=True, router_loss_coef=0.5)
  assert config(router_loss=0.5) == on
  assert config(router_loss=0.0, start=Scratch(on)) == dataclasses.replace(
    on, router_loss=False
  )
  with pytest.raises(ValueError, match=r"router_loss is 0\.5, but .* no mixture of"):
    config(router_loss=0.5, start=Scratch(MODEL))
  with pytest.raises(ValueError, match=r"router_loss is -1; it must be a number >= 0"):
    experiments.replace(RUN, router_loss=-1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Checkpoints: a policy, others of more layers or another tokenizer, and none."""
  root = tmp_path_factory.mktemp("saved")
  texts = [text for row in synthetic_reviews.generate(20, seed=0) for text in row]
  tokenizers = {n: synthetic_reviews.train_bpe(texts, n) for n in (300, 310)}
  deeper = dataclasses.replace(MODEL, layers=2)
  for name, config, size in (
    ("policy", MODEL, 300),
    ("deeper", deeper, 300),
    ("other", MODEL, 310),
    ("bare", MODEL, None),
  ):
    params = {"lm": transformer.model(config).init(jax.random.key(0))}
    tokenizer = tokenizers.get(size)
    hf_checkpoint.save(root / name, config, params, tokenizer=tokenizer)
  return root


def test_start_without_a_tokenizer_is_refused(saved):
  with pytest.raises(ValueError, match="bare has no tokenizer; save one beside"):
    loading.pretrained(Pretrained(str(saved / "bare")))


def test_reference_of_its_own_is_of_the_same_architecture_and_tokenizer(saved):
  def reference(name):
    given = Pretrained(str(saved / name), remat="none")
    run = experiments.replace(RUN, start=start, reference=given)
    return references.load(run, begin)

  start = Pretrained(str(saved / "policy"))
  begin = loading.pretrained(start)
  assert references.load(RUN, begin) is None
  pairs = map(jax.tree.leaves, (reference("policy"), begin.params["lm"]))
  assert all(np.array_equal(a, b) for a, b in zip(*pairs, strict=True))
  with pytest.raises(
    ValueError, match=r"deeper'.* another architecture than the start"
  ):
    reference("deeper")
  with pytest.raises(ValueError, match=r"other'.* another tokenizer than the start"):
    reference("other")


def test_digests_are_of_weights_that_a_resumption_reads_anew(saved):
  start = Pretrained(str(saved / "policy"))
  lm, other = (np.zeros(3), np.ones(3))
  begin = loading.LoadedStart(MODEL, {"lm": lm}, None)
  assert references.start_digests(RUN, begin, None) == {}  # made from the seed
  pretrained = experiments.replace(RUN, start=start)
  assert set(references.start_digests(pretrained, begin, None)) == {"start_sha256"}
  apart = experiments.replace(pretrained, reference=start)
  reference = references.Reference(other, None)
  both = references.start_digests(apart, begin, reference)
  assert set(both) == {"start_sha256", "reference_sha256"}
  assert len(set(both.values())) == 2
  taught = Teacher(transformer.model(MODEL), {"lm": 2 * other})
  every = references.start_digests(apart, begin, reference, taught)
  assert set(every) - set(both) == {"teacher_sha256"}
  assert len(set(every.values())) == 3


def test_prompts_are_dropped_by_themselves_and_not_by_their_ids(tmp_path):
  """Rows that share the id of a bad one stay."""
  rows = [Prompt(f"q{i // 2}", f"the film number {i} was") for i in range(8)]
  rows.append(Prompt("q1", "zebra quartz jumbo vexing " * 8))
  prompts = Prompts("rows", bad_rows="drop", limits=Limits(prompt=40))
  run = experiments.replace(PLAIN, prompts=prompts, evaluation=Evaluation())
  texts = [row.prompt for row in rows[:8]]
  tokenizer = synthetic_reviews.train_bpe(texts, 300)
  chosen, _, counts = loading.prompt_sets(
    run, _load(prompts, {"rows": rows}), tokenizer, tmp_path, {}
  )
  assert list(chosen.texts) == texts
  assert (counts["rows"], counts["prompts"], counts["dropped"]) == (9, 8, 1)
  assert counts["first_dropped"][0].startswith("q1: over-long prompt: ")


def test_bad_rows_stop_the_run_or_are_dropped_and_listed(tmp_path):
  rows = [{"prompt": f"p{i}", "chosen": " good", "rejected": " bad"} for i in range(6)]
  rows[2]["chosen"] = " bad"
  path = tmp_path / "pairs.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  stop = experiments.replace(RUN, objective=ObjectiveConfig("dpo"), path=str(path))
  with pytest.raises(
    ValueError, match=r"1 bad (row|record).*\n.*pairs.jsonl:3: identical"
  ):
    loop.train(stop, tmp_path / "run", say=lambda text: None)
  assert not (tmp_path / "run").exists()
  drop = experiments.replace(stop, bad_rows="drop")
  (tmp_path / "run").mkdir()
  loaded = _load(drop.data)
  begin = loading.start(drop, tmp_path / "run", loaded)
  train, _, counts = loading.prepare(
    drop, loaded, begin.tokenizer, tmp_path / "run", {}
  )
  assert len(train) == 5 and sum(counts["dropped"].values()) == 1
  (line,) = (tmp_path / "run" / "bad_rows.jsonl").read_text().splitlines()
  assert json.loads(line)["uid"] == "pairs.jsonl:3"


@pytest.fixture(scope="module")
def tokenizer():
  texts = [text for row in synthetic_reviews.generate(20, seed=0) for text in row]
  return synthetic_reviews.train_bpe(texts, MODEL.vocab)


def _prompt_sets(tmp_path, tokenizer, datasets, **changes):
  run = experiments.replace(PLAIN, **changes)
  loaded = _load(run.data.prompts, datasets)
  return loading.prompt_sets(run, loaded, tokenizer, tmp_path, datasets)


def test_equal_prompts_count_once_and_the_held_out_share_is_apart(tokenizer, tmp_path):
  rows = [Prompt(f"row {i}", f"prompt {i % 12}") for i in range(24)]
  chosen, held_out, counts = _prompt_sets(
    tmp_path,
    tokenizer,
    {"rows": rows},
    prompts=Prompts("rows"),
    evaluation=Evaluation(share=0.25),
  )
  train, apart = set(chosen.texts), set(held_out.texts)
  assert not train & apart and len(train) + len(apart) == 12
  assert counts["prompts"] == len(train) == len(chosen.ids)
  assert counts["held_out_prompts"] == len(apart) == len(held_out.ids) > 0
  assert chosen.width == held_out.width == counts["longest_prompt"]


def test_held_out_prompts_of_a_portion_are_limited_by_number(tokenizer, tmp_path):
  rows = [Prompt(f"row {i}", f"prompt {i // 2}") for i in range(200)]
  chosen, held_out, _ = _prompt_sets(
    tmp_path,
    tokenizer,
    {"rows": rows},
    prompts=Prompts("rows", portion="train"),
    evaluation=Evaluation("rows", portion="test", limit=5),
  )
  assert not set(chosen.texts) & set(held_out.texts) and len(held_out.texts) == 5


def test_bad_rows_of_held_out_prompts_stop_the_run_or_are_counted(tokenizer, tmp_path):
  file = tmp_path / "held.jsonl"
  file.write_text('{"prompt": "this film is"}\n{"prompt": 3}\n')
  changes = {"evaluation": Evaluation(str(file))}
  with pytest.raises(
    ValueError, match=r"(?s)1 bad (row|record).*held\.jsonl"
  ) as refused:
    _prompt_sets(tmp_path, tokenizer, {}, **changes)
  changes["prompts"] = dataclasses.replace(PLAIN.data.prompts, bad_rows="drop")
  _, held_out, counts = _prompt_sets(tmp_path, tokenizer, {}, **changes)
  assert held_out.texts == ("this film is",) and counts["dropped"] == 1
  (line,) = (tmp_path / "bad_rows.jsonl").read_text().splitlines()
  assert json.loads(line)["uid"] == refused.value.bad[0].uid


def test_sampling_has_the_room_that_the_decoder_has():
  learned = dataclasses.replace(MODEL, rotary=None, positions=24)
  sampling = Sampling(completions=2, max_completion_tokens=20)
  loading.check_room(learned, sampling, 4)
  loading.check_room(MODEL, sampling, 4000)
  with pytest.raises(ValueError, match=r"of 5 tokens that is 25.* 24 positions"):
    loading.check_room(learned, sampling, 5)
  most = dataclasses.replace(sampling, top_k=MODEL.vocab)
  loading.check_room(MODEL, most, 4)
  with pytest.raises(ValueError, match="top_k is 321; allowed: 1 to 320"):
    loading.check_room(MODEL, dataclasses.replace(most, top_k=MODEL.vocab + 1), 4)


def _sources(count):
  return {
    name: tuple(Demonstration(f"{name}{n}", f"{name} {n}", " x") for n in range(count))
    for name in ("a", "b")
  }


def test_further_sources_count_by_their_weights():
  rows = _sources(400)
  for weight, least, most in (("=2.5", 950, 1050), ("=0.25", 60, 140), ("", 400, 400)):
    data = Data("a", also=(f"b{weight}",))
    loaded = loading.load(data, data, rows)
    uids = [row.uid for row in loaded.records]
    assert uids[:400] == [row.uid for row in rows["a"]]
    assert least <= len(uids) - 400 <= most
    again = loading.load(data, dataclasses.replace(data, seed=1), rows)
    assert (again.records != loaded.records) == ("." in weight)
    assert weight.removeprefix("=") in loaded.name
  assert data.title == "a + b"


def test_limit_and_digest_are_of_each_source():
  rows = _sources(10)
  data = Data("a", also=("b=2",), limit=3)
  loaded = loading.load(data, data, rows)
  assert [row.uid for row in loaded.records] == [
    *("a0", "a1", "a2"),
    *("b0", "b1", "b2") * 2,
  ]
  digests = {
    loading.load(other, other, rows).sha256
    for other in (data, Data("a"), Data("a", also=("b",)), Data("b", also=("a",)))
  }
  assert len(digests) == 4


def test_missing_further_source_is_named_by_its_field(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
  for also in ("none.jsonl", "none"):
    data = Data(str(path), also=(also,))
    with pytest.raises(ValueError, match=f"Data.also is '{also}'"):
      loading.load(data, data, {})


@pytest.mark.parametrize("also", ["b=0", "b=x", "=2", "b=inf"])
def test_wrong_weight_is_refused(also):
  with pytest.raises(ValueError, match="write PATH or PATH=WEIGHT"):
    Data("a", also=(also,))


def test_records_of_a_function_have_no_further_sources():
  with pytest.raises(ValueError, match="name a path, or leave it out"):
    Data(Configured(counted, log="x"), also=("b",))
