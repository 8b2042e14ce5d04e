"""What an online run reads anew at every resume is what it began with, and sound."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.train.tiny_runs import MODEL
from tests.train.tiny_runs import PLAIN as RUN
from xpo_jax.config import experiment
from xpo_jax.config.data import Evaluation
from xpo_jax.config.experiment import Pretrained
from xpo_jax.config.factories import Configured
from xpo_jax.config.sampling import Feedback
from xpo_jax.data import synthetic_reviews
from xpo_jax.data.records import BadRecords
from xpo_jax.feedback.protocol import Scores
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.train import online_setup


def test_bad_rows_of_held_out_prompts_stop_the_run_or_are_counted(tmp_path):
  file = tmp_path / "held.jsonl"
  file.write_text('{"prompt": "this film is"}\n{"prompt": 3}\n')
  loaded = online_setup.inputs.load(RUN.data.prompts, RUN.data.prompts, {})
  run = experiment.replace(RUN, evaluation=Evaluation(str(file)))
  with pytest.raises(BadRecords, match=r"(?s)1 bad row.*held\.jsonl") as refused:
    online_setup.prepare(run, tmp_path, loaded)
  prompts = experiment.replace(run.prompts, bad_rows="drop")
  dropping = experiment.replace(run, prompts=prompts)
  found = online_setup.prepare(dropping, tmp_path, loaded)
  assert found.held_out.texts == ("this film is",) and found.counts["dropped"] == 1
  (line,) = (tmp_path / "bad_rows.jsonl").read_text().splitlines()
  assert json.loads(line)["uid"] == refused.value.bad[0].uid


def test_judge_whose_files_changed_is_refused(tmp_path):
  judge = tmp_path / "judge"
  judge.mkdir()
  (judge / "config.json").write_text("{}")
  hparams = {"directory": str(judge), "weight": 2.0}
  source = Configured(
    ensemble, members=(Configured(constant, **hparams), Configured(constant, **hparams))
  )
  run = experiment.replace(RUN, feedback=Feedback(source))
  loaded = online_setup.inputs.load(RUN.data.prompts, RUN.data.prompts, {})

  def prepared():
    online_setup.prepare(run, tmp_path, loaded)

  prepared()
  prepared()
  (judge / "reward.json").write_text('{"gain": 2}')
  with pytest.raises(ValueError, match=r"changed\n  judges_sha256.*judge"):
    prepared()


def constant(directory: str, weight: float):
  """A scorer that a directory stands for."""
  del directory
  return lambda prompts, completions: Scores(np.full(len(prompts), weight, np.float32))


def ensemble(members):
  """The first of them."""
  return members[0]


def test_start_whose_weights_changed_is_refused(tmp_path):
  model = transformer.model(MODEL)
  texts = [text for row in synthetic_reviews.generate(20, seed=0) for text in row]
  tokenizer, start = synthetic_reviews.train_bpe(texts, 300), tmp_path / "start"
  run = experiment.replace(RUN, start=Pretrained(str(start), remat=False))
  loaded = online_setup.inputs.load(RUN.data.prompts, RUN.data.prompts, {})

  def prepared(seed):
    shutil.rmtree(start, ignore_errors=True)
    hf_checkpoint.save(
      start, MODEL, {"lm": model.init(jax.random.key(seed))}, tokenizer
    )
    online_setup.prepare(run, tmp_path, loaded)

  prepared(0)
  prepared(0)
  with pytest.raises(ValueError, match=r"changed\n  start_sha256: "):
    prepared(1)
  counts = json.loads((tmp_path / "data.json").read_text())
  del counts["start_sha256"]  # as in runs begun before it was kept
  (tmp_path / "data.json").write_text(json.dumps(counts))
  prepared(1)
