"""An evaluation of the user's in a run: its numbers, its time, and nothing else."""

import os
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_policy
from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import ADAPTED, PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config import trust, yaml_file
from xpo_jax.config.experiment import Loop
from xpo_jax.config.factories import Configured
from xpo_jax.data.render import Template
from xpo_jax.evaluation import evaluate_run, evaluators, policies
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.train import loop, metrics
from xpo_jax.train.state import Policy

TEXTS = ["the film was", "a plot of"], [" good.", " bad words."]
CLOCK = [0.0]


def log_likelihood(scale: float = 1.0):
  """Makes the evaluation: mean log-prob of two texts; an hour passes."""

  def evaluate(policy):
    CLOCK[0] += 3600.0
    return {"logp": scale * policies.logps(policy, *TEXTS).mean(), "step": policy.step}

  return evaluate


def no_function():
  return 3


def wrong(value="a list"):
  return lambda policy: {"a list": [1.0], "a text": {"a": "b"}}[value]


HOOKED = experiments.replace(
  ADAPTED,
  loop=Loop(
    log_every=1,
    checkpoint_every=2,
    evaluator=Configured(log_likelihood, scale=2.0),
    evaluator_every=4,
  ),
)


@pytest.fixture(scope="module")
def hooked(datasets, tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("hooked") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop.time, "perf_counter", lambda: CLOCK[0])
    # A step of no duration has no tokens per second.
    patch.setattr(loop, "_write", _with_a_second(loop._write))
    loop.train(HOOKED, run_dir, datasets=datasets, say=quiet)
  return run_dir


def _with_a_second(write):
  def written(*arguments):
    CLOCK[0] += 1.0
    return write(*arguments)

  return written


def test_numbers_come_at_their_steps_and_after_the_last(hooked):
  lines = metrics.read(hooked)
  at = {line["step"]: line for line in lines if "evaluator/logp" in line}
  assert list(at) == [4, 6]
  assert [line["evaluator/step"] for line in at.values()] == [4, 6]
  # The policy that is exported: adapters merged, the average of the weights.
  exported = hf_checkpoint.load(evaluate_run.policy_dir(hooked))
  again = policies.logps(_policy(exported), *TEXTS)
  np.testing.assert_allclose(at[6]["evaluator/logp"], 2 * again.mean(), rtol=1e-5)


def test_time_of_an_evaluation_is_no_time_of_a_step(hooked):
  for line in metrics.read(hooked):
    assert line["time/seconds"] == 1.0
    assert line.get("time/evaluation", 3600.0) == 3600.0
    assert ("time/evaluation" in line) is ("evaluator/logp" in line)


def test_run_is_that_without_an_evaluation(hooked, adapted):
  assert compare.differences(hooked, adapted.run_dir, ("time/", "evaluator/")) == []


def test_stopped_run_resumes_with_the_same_numbers(hooked, datasets, tmp_path):
  said = []

  def say(text):
    said.append(text)
    if text.startswith("step 3/"):
      os.kill(os.getpid(), signal.SIGTERM)

  stopped = loop.train(HOOKED, tmp_path / "run", datasets=datasets, say=say)
  assert not stopped.finished
  assert any("evaluator/logp" in text for text in said)
  result = loop.resume(tmp_path / "run", datasets=datasets, say=quiet)
  assert result.finished
  assert compare.differences(tmp_path / "run", hooked, ("time/",)) == []


def test_run_on_rollouts_calls_it_too(tmp_path):
  run = experiments.replace(
    PLAIN, iterations=1, loop=Loop(evaluator=Configured(log_likelihood))
  )
  result = loop.train(run, tmp_path / "run", say=quiet)
  (line,) = metrics.read(result.run_dir)
  assert line["evaluator/logp"] < 0 and line["evaluator/step"] == 1


def test_what_is_wrong_is_refused_before_the_run(datasets, tmp_path):
  with pytest.raises(
    ValueError, match=r"evaluator_every is 3, and .*evaluator is None"
  ):
    Loop(evaluator_every=3)
  for config, message in (
    (Configured(no_function), r"no_function, which makes a int; name a function"),
    (Configured(evaluators.tasks), r"names is \(\); name at least one task"),
  ):
    run = experiments.replace(ADAPTED, loop=Loop(evaluator=config))
    with pytest.raises(ValueError, match=message):
      loop.train(run, tmp_path / "run", datasets=datasets, say=quiet)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("value", "message"),
  [("a list", "returned a list; it must"), ("a text", r"returned 'a': 'b'; it must")],
)
def test_what_is_no_number_is_refused(value, message):
  with pytest.raises(ValueError, match=message):
    loop.named_numbers(wrong(value)(None), "my:wrong")


def test_numbers_of_arrays_are_numbers():
  found = loop.named_numbers({"a": np.float32(0.5), "b": jnp.ones(()), "c": True}, "my")
  assert found == {"evaluator/a": 0.5, "evaluator/b": 1.0, "evaluator/c": 1.0}


def test_file_names_an_evaluation_only_where_it_is_trusted(tmp_path):
  yaml_file.write(tmp_path, HOOKED)
  plain = yaml_file.content(tmp_path)["experiment"]
  module = Configured(log_likelihood).name.partition(":")[0]
  assert trust.foreign_modules(plain) == [module]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(trust, "_trusted", set())
    with pytest.raises(trust.ForeignCode, match=r"loop\.evaluator names"):
      yaml_file.read(tmp_path)
  ours = yaml_file.to_dict(Configured(evaluators.tasks, names=("arc_easy",)))
  assert trust.foreign_modules(ours) == []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  read = hf_checkpoint.load(tiny_policy.write(tmp_path_factory.mktemp("p") / "model"))
  return read._replace(params=jax.device_put(read.params))


def _policy(checkpoint):
  model = transformer.model(checkpoint.config)
  return Policy(model, checkpoint.params, checkpoint.tokenizer, Template(), step=7)


def test_log_probs_are_those_of_whole_forward_passes(checkpoint):
  policy, tokenizer = _policy(checkpoint), checkpoint.tokenizer
  for prompt, text, logp in zip(*TEXTS, policies.logps(policy, *TEXTS), strict=True):
    prefix, ids = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
    ids = [*ids, tokenizer.eos_token_id]
    rows = transformer.Rows.plain(jnp.array([ids]), jnp.ones((1, len(ids)), bool))
    hidden_LD = policy.model.hidden(policy.params["lm"], rows)[0]
    head = policy.model.head(policy.params["lm"])
    logp_LV = np.asarray(jax.nn.log_softmax(hidden_LD @ head.T))
    expected = sum(logp_LV[t - 1, ids[t]] for t in range(len(prefix), len(ids)))
    np.testing.assert_allclose(logp, expected, rtol=1e-5)


def test_tasks_are_run_on_the_policy_that_is_handed_over(checkpoint, monkeypatch):
  policy, config = _policy(checkpoint), GenerationConfig(4, greedy=True)
  asked = {}

  def simple_evaluate(model, tasks, **settings):
    asked.update(settings, tasks=tasks)
    request = types.SimpleNamespace(args=("the film was", {"max_gen_toks": 4}))
    (text,) = model.generate_until([request])
    same = float(text == policies.sample(policy, ["the film was"], config)[0][0])
    values = {"acc,none": same, "acc,strict": 0.25, "acc_stderr,none": 0.1}
    return {"results": {"tiny": values | {"alias": "tiny", "f1,none": "N/A"}}}

  fake = types.ModuleType("lm_eval")
  fake.simple_evaluate = simple_evaluate
  fake.api, fake.tasks = types.ModuleType("api"), types.ModuleType("tasks")
  fake.api.model = types.ModuleType("model")
  fake.api.model.LM = type("LM", (), {})
  fake.tasks.TaskManager = lambda include_path: types.SimpleNamespace(
    all_tasks=["tiny"]
  )
  for name in ("", ".api", ".api.model", ".tasks"):
    monkeypatch.setitem(sys.modules, f"lm_eval{name}", fake)
  monkeypatch.setitem(sys.modules, "lm_eval", fake)
  with pytest.raises(ValueError, match=r"no task 'tinny'; did you mean"):
    evaluators.tasks(("tinny",))
  with pytest.raises(ValueError, match="limit is 0"):
    evaluators.tasks(("tiny",), limit=0)
  found = evaluators.tasks(("tiny",), limit=3)(policy)
  assert found == {"tiny/acc": 1.0, "tiny/acc,strict": 0.25}
  assert asked["tasks"] == ["tiny"] and asked["limit"] == 3
