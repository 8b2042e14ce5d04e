"""Runs on rollouts, tiny: exact under kills, compiled once, true to what is configured.

Some iterate on rollouts that were written beforehand, with rewards of the test's own.
"""

import dataclasses
import itertools
import json
import pickle
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import compiling
from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import MODEL, ONLINE
from tests.train.tiny_runs import PLAIN as RUN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import AuxLossConfig, Pretrained, Scratch
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback
from xpo_jax.data import sealed_files, synthetic_reviews
from xpo_jax.data.records import Prompt, Turn
from xpo_jax.data.tokenise import Example
from xpo_jax.feedback.protocol import Scores
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.train import (
  loop,
  metrics,
  minibatches,
  rollouts,
  rollouts_program,
  run_directory,
  state,
)
from xpo_jax.train.loading import Inputs
from xpo_jax.types import Layout

# And a second objective with data of its own.
WITH_AUX = dataclasses.replace(
  ONLINE,
  aux_losses=(
    AuxLossConfig(
      2.0, ObjectiveConfig("sft"), Data("synthetic:30", rows_per_step=3, row_length=64)
    ),
  ),
)
BARE = experiments.replace(
  RUN,
  objective=ObjectiveConfig("rloo", beta=None),
  sampling=dataclasses.replace(RUN.data.sampling, max_completion_tokens=8),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The uninterrupted run, and how much was compiled before each line of it."""
  run_dir = tmp_path_factory.mktemp("runs") / "whole"
  compiled = []
  with compiling.heard() as names:

    def say(text):
      if text.startswith("step "):
        compiled.append(len(names))

    result = loop.train(WITH_AUX, run_dir, say=say)
  assert result.finished and result.steps == WITH_AUX.data.iterations
  return run_dir, compiled


def test_nothing_is_compiled_in_steady_state(whole):
  _, compiled = whole
  assert compiled[0] > 0
  # The third iteration is the first with a reference that moved and a full sampler.
  assert compiled[2:] == [compiled[2]] * 3


def test_line_of_metrics_says_what_happened(whole):
  run_dir, _ = whole
  lines = metrics.read(run_dir)
  assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
  names = {"loss", "entropy", "ratio", "clip_fraction", "updates", "beta"}
  names |= {
    f"rollout/{n}"
    for n in ("reward", "kl", "length", "no_eos", "frac_informative_prompts")
  }
  names |= {f"time/{n}" for n in ("rollout", "feedback", "update", "seconds")}
  for line in lines:
    assert names <= set(line)
    assert line["updates"] == 4
    terms = ("loss/policy", "loss/value", "loss/text/sft")
    assert line["loss"] == pytest.approx(sum(line[name] for name in terms))
    times = line["time/rollout"] + line["time/feedback"] + line["time/update"]
    assert times == pytest.approx(line["time/seconds"])
  assert lines[0]["rollout/kl"] == pytest.approx(0, abs=1e-5)  # policy = reference
  # The sampler is one iteration behind: it draws from the start once more.
  assert lines[1]["rollout/kl"] == pytest.approx(0, abs=1e-5)


def test_controller_moves_beta_by_the_kl_it_saw(whole):
  lines = metrics.read(whole[0])
  beta = 0.1
  for line in lines:
    assert line["beta"] == pytest.approx(beta, rel=1e-5)
    error = np.clip(line["rollout/kl"] / 1.0 - 1, -0.2, 0.2)
    beta *= 1 + error * 16 / 100  # 16 completions of a horizon of 100


def test_rollouts_of_an_iteration_can_be_read(whole):
  run_dir, _ = whole
  drawn = rollouts.read(run_dir / run_directory.ROLLOUTS / "000003.jsonl")
  assert drawn.iteration == 2 and drawn.length_BK.shape == (8, 2)
  line = metrics.read(run_dir)[2]
  assert drawn.reward_BK.mean() == pytest.approx(line["rollout/reward"])
  assert set(np.unique(drawn.reward_BK)) <= {0.0, 1.0}


def test_an_iteration_draws_from_a_key_of_its_own(whole):
  # The first two are of one policy, the sampler being behind: the start, so near to
  # uniform that draws from one key are mostly the same whatever the prompt.
  first, second = (
    rollouts.read(whole[0] / run_directory.ROLLOUTS / f"{number:06d}.jsonl").examples
    for number in (1, 2)
  )
  same = [
    a == b
    for ours, theirs in zip(first, second, strict=True)
    for one, other in zip(ours.completions, theirs.completions, strict=True)
    for a, b in zip(one, other, strict=False)
  ]
  assert len(same) > 60 and np.mean(same) < 0.2


_CHILD = """
import os, pickle, signal, sys
from xpo_jax.train import loop, references, rewards, rollouts
with open(sys.argv[1], "rb") as file:
  experiment = pickle.load(file)
run_dir, log, where, when = *sys.argv[2:5], int(sys.argv[5])
module, name = {
  "rollout": (rollouts, "draw"),
  "feedback": (rewards, "ask"),
  "update": (references, "fill"),
}[where]
asked, calls = rewards.ask, []

def dying(*args, **named):
  calls.append(1)
  if len(calls) == when:
    os.kill(os.getpid(), signal.SIGKILL)
  return real(*args, **named)

def ask(judge, drawn, feedback):
  with open(log, "a") as file:
    file.write(f"{drawn.iteration} ")
  return asked(judge, drawn, feedback)

rewards.ask = ask
real = getattr(module, name)
setattr(module, name, dying)
if os.path.exists(run_dir):
  loop.resume(run_dir)
else:
  loop.train(experiment, run_dir)
"""


def test_killed_anywhere_it_goes_on_bit_for_bit(whole, tmp_path):
  run_dir, log, handed = tmp_path / "run", tmp_path / "asked", tmp_path / "handed"
  handed.write_bytes(pickle.dumps(WITH_AUX))
  # In the rollouts of iteration 2; before the feedback of iteration 3, the second of
  # that process; between two updates of iteration 4, in a process that has done the 4
  # of iteration 3.
  for where, when in (("rollout", 2), ("feedback", 2), ("update", 4 + 3)):
    command = [sys.executable, "-c", _CHILD, str(handed), str(run_dir), str(log)]
    # Into a file: a pipe would stay open while any process it started lives.
    said = tmp_path / "said"
    with said.open("w") as file:
      command_at = [*command, where, str(when)]
      died = subprocess.run(command_at, timeout=300, stdout=file, stderr=file)
    assert died.returncode == -signal.SIGKILL, said.read_text()[-3000:]
  # Iteration 3 was drawn anew; the feedback of iteration 4 was on disk.
  assert log.read_text().split() == ["0", "1", "2", "3"]
  said = []
  result = loop.resume(run_dir, say=said.append)
  assert result.finished
  assert "continuing after step 3" in said
  assert compare.differences(run_dir, whole[0]) == []


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
  """The parts of `BARE` and its state before the first iteration."""
  run_dir = tmp_path_factory.mktemp("run")
  return rollouts_program.assemble(BARE, run_dir, Inputs(), {}, quiet)


def _written(parts, index: int, tokens: int, reward_BK=None) -> int:
  """Writes judged rollouts of so many tokens a completion, as an iteration reads them;
  returns the length of a row of them."""
  if reward_BK is None:
    reward_BK = np.tile(np.float32([1, 0]), (4, 1))
  prompts = parts.prompts
  longest = np.argsort([len(ids) for ids in prompts.ids])[-4:]
  ones = np.ones(tokens, np.int32)
  drawn = rollouts.RolloutBatch(
    iteration=index,
    row_B=longest,
    prompts=tuple(prompts.texts[row] for row in longest),
    texts_BK=(("a", "b"),) * 4,
    examples=tuple(
      Example(f"row {row}", prompts.ids[row], (5 * ones, 6 * ones), Layout.SAMPLED)
      for row in longest
    ),
    logp=((np.float32(-1) * ones, np.float32(-2) * ones),) * 4,
    ended_BK=np.ones((4, 2), bool),
    reward_BK=np.asarray(reward_BK, np.float32),
  )
  rollouts.write(_path(parts, index), drawn)
  return parts.sizes.shape(max(e.tokens for e in drawn.examples), 2).L


def _path(parts, index: int):
  return parts.run_dir / run_directory.ROLLOUTS / f"{index + 1:06d}.jsonl"


def _copied(tree):
  return jax.tree.map(lambda x: x.copy(), tree)


def test_one_compilation_a_row_length_and_none_in_steady_state(assembled):
  parts, first = assembled
  lengths = [_written(parts, i, n) for i, n in enumerate((1, 2, 8, 3))]
  # Short, as short, long, short again.
  assert lengths[0] == lengths[1] == lengths[3] != lengths[2]
  now, counts = _copied(first), []
  for index in range(4):
    with compiling.heard() as names:
      now, line = rollouts_program.iterate(parts, now, index)
    assert line["updates"] == 1
    counts.append(names)
  steps = [sum("step" in name for name in names) for names in counts]
  assert steps == [1, 0, 1, 0]
  assert counts[1] == counts[3] == []


def test_equal_rewards_are_reported_and_move_nothing(assembled):
  parts, first = assembled
  _written(parts, 4, 1, np.ones((4, 2)))
  after, line = rollouts_program.iterate(parts, _copied(first), 4)
  assert line["rollout/frac_informative_prompts"] == 0
  assert line["rollout/reward_std_within"] == 0
  assert line["loss"] == line["grad_norm"] == 0
  pairs = zip(*map(jax.tree.leaves, (after.train.params, parts.ref)), strict=True)
  assert all(np.array_equal(a, b) for a, b in pairs)


def test_abstentions_are_counted_and_leave_finite_numbers(assembled):
  parts, first = assembled
  nan = np.nan
  _written(parts, 5, 1, [[1, nan], [nan, nan], [1, 0], [0, 1]])
  _, line = rollouts_program.iterate(parts, _copied(first), 5)
  assert line["rollout/abstained"] == 3 / 8
  assert line["rollout/frac_informative_prompts"] == 0.5
  assert line["rollout/reward"] == pytest.approx(3 / 5)
  assert all(np.isfinite(x) for x in line.values()) and line["grad_norm"] > 0


@pytest.mark.nonfinite
def test_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(assembled):
  parts, first = assembled
  _written(parts, 6, 1)
  diverged = jax.tree.map(lambda x: x * np.nan, first.train.params)
  now = first.replace(train=_copied(first.train).replace(params=diverged))
  match = r"iteration 7, update 1: loss is nan.*batch\.npz"
  with pytest.raises(run_directory.NonFiniteLoss, match=match):
    rollouts_program.iterate(parts, now, 6)
  saved = np.load(parts.run_dir / run_directory.NONFINITE / "batch.npz")
  np.testing.assert_array_equal(saved["fields.reward_BK"].sum(-1), 1)


def _iterated(parts, now, count: int):
  """States before each iteration and after the last; all but the last are copies."""
  states = [_copied(now)]
  for index in range(count):
    if not _path(parts, index).exists():
      _written(parts, index, 1)
    now, _ = rollouts_program.iterate(parts, now, index)
    states.append(_copied(now))
  return states


def _same(a, b) -> bool:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("staleness", [1, 3])
def test_sampler_is_as_many_iterations_behind_as_configured(assembled, staleness):
  parts, first = assembled
  sampling = dataclasses.replace(BARE.data.sampling, staleness=staleness)
  parts = parts._replace(experiment=experiments.replace(BARE, sampling=sampling))
  sampler = tuple(_copied(first.train.params) for _ in range(staleness))
  states = _iterated(parts, _copied(first).replace(sampler=sampler), 5)
  policies = [now.train.params for now in states]
  assert not any(_same(a, b) for a, b in itertools.pairwise(policies))
  for index, now in enumerate(states):
    assert _same(now.sampler[0], policies[max(index - staleness, 0)])


def test_reference_is_the_policy_after_every_so_many_iterations(assembled):
  parts, first = assembled
  every = experiments.replace(BARE, ref_update_every=2)
  parts = parts._replace(experiment=every)
  states = _iterated(parts, _copied(first).replace(ref=_copied(parts.ref)), 5)
  policies = [now.train.params for now in states]
  for index, now in enumerate(states):
    assert _same(now.ref["lm"], policies[index // 2 * 2]["lm"])


def test_iteration_without_a_pair_says_so_and_updates_nothing(tmp_path):
  said, pairs = [], experiments.replace(RUN, objective=ObjectiveConfig("dpo"))
  parts, first = rollouts_program.assemble(pairs, tmp_path, Inputs(), {}, said.append)
  _written(parts, 0, 1, np.ones((4, 2)))
  after, line = rollouts_program.iterate(parts, first, 0)
  assert "nothing to learn from, no update; rewards differ on 0%" in said[-1]
  assert "loss" not in line and int(after.train.step) == 0 and int(after.step) == 1


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
  """PPO whose sampler is the start and whose policy and reference are elsewhere, its
  value head not 0."""
  run_dir = tmp_path_factory.mktemp("behind")
  ppo = experiments.replace(
    RUN,
    objective=ObjectiveConfig("ppo"),
    sampling=dataclasses.replace(RUN.data.sampling, staleness=1),
    ref_update_every=1,
    evaluation=Evaluation(share=0.3),
  )
  parts, first = rollouts_program.assemble(ppo, run_dir, Inputs(), {}, quiet)
  moved = jax.tree.map(
    lambda x: x + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape), first.train.params
  )
  train = first.train.replace(params=moved)
  return parts, first.replace(train=train, ref={"lm": _copied(moved["lm"])})


def _scored(parts, drawn, params, ref):
  roles = state.roles(params, parts.frozen, None) | {"ref": ref}
  return minibatches.record(drawn, parts.record, roles, parts.sizes, parts.place)


def test_held_out_kl_is_to_the_reference_that_the_run_started_with(behind):
  parts, now = behind
  _written(parts, 0, 1)
  path = parts.run_dir / run_directory.HELD_OUT / "000000.jsonl"
  path.parent.mkdir()
  _path(parts, 0).rename(path)
  found = rollouts_program.evaluate(parts, now)["eval/kl"]
  drawn = rollouts.read(path)
  start, renewed = (
    minibatches.seq_kl(_scored(parts, drawn, now.train.params, ref)).mean()
    for ref in (parts.ref, now.ref)
  )
  assert found == pytest.approx(start) and found != pytest.approx(renewed, rel=1e-3)


def test_old_values_are_of_the_policy_that_sampled(behind, monkeypatch):
  parts, now = behind
  _written(parts, 0, 1)
  seen, construct = [], minibatches.construct

  def watched(pairs, drawn, values, *rewards):
    seen.append((drawn, values))
    return construct(pairs, drawn, values, *rewards)

  monkeypatch.setattr(minibatches, "construct", watched)
  rollouts_program.iterate(parts, _copied(now), 0)
  ((drawn, values),) = seen
  current = _scored(parts, drawn, now.train.params, now.ref)
  # The start's value head is 0, that of the policy of now is not.
  assert not np.any(values["old_value_BKT"]) and np.all(current["old_value_BKT"])


ASKED: list = []  # prompts that a judge was asked about


def remembering():
  """A judge that keeps its prompts."""

  def scorer(prompts, completions):
    ASKED.extend(prompts)
    return [float(len(text)) for text in completions]

  return scorer


def test_judge_is_asked_about_conversations(tmp_path):
  ASKED.clear()
  tokenizer = synthetic_reviews.train_bpe(["user: why? assistant: four."], 300)
  tokenizer.chat_template = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
  )
  tokenizer.save_pretrained(tmp_path / "tokenizer")
  turns = [(Turn("user", f"why {n}?"),) for n in range(4)]
  run = experiments.replace(
    RUN,
    prompts=Prompts("talks"),
    start=Scratch(MODEL, str(tmp_path / "tokenizer")),
    feedback=Feedback(Configured(remembering)),
    iterations=1,
    evaluation=Evaluation(),
  )
  rows = [Prompt(str(n), talk) for n, talk in enumerate(turns)]
  result = loop.train(run, tmp_path / "run", datasets={"talks": rows}, say=quiet)
  assert {prompt.turns for prompt in ASKED} == set(turns)
  kept = rollouts.read(result.run_dir / run_directory.ROLLOUTS / "000001.jsonl")
  assert {prompt.turns for prompt in kept.prompts} <= set(turns)
  assert tokenizer.decode(kept.examples[0].prompt).endswith("assistant:")


def constant(directory: str, weight: float):
  """A scorer that a directory stands for."""
  del directory
  return lambda prompts, completions: Scores(np.full(len(prompts), weight, np.float32))


def ensemble(members):
  """The first of them."""
  return members[0]


def test_judge_whose_files_changed_is_refused(tmp_path):
  judge = tmp_path / "judge"
  judge.mkdir()
  (judge / "config.json").write_text("{}")
  arguments = {"directory": str(judge), "weight": 2.0}
  member = Configured(constant, **arguments)
  source = Configured(ensemble, members=(member, member))
  run = experiments.replace(RUN, feedback=Feedback(source))

  def prepared():
    rollouts_program.prepare(run, tmp_path, Inputs(), {}, quiet)

  prepared()
  prepared()
  (judge / "reward.json").write_text('{"gain": 2}')
  with pytest.raises(
    ValueError, match=r"changed\n  judges_sha256\.members\.0\.directory: "
  ):
    prepared()


def test_start_whose_weights_changed_is_refused(tmp_path):
  model = transformer.model(MODEL)
  texts = [text for row in synthetic_reviews.generate(20, seed=0) for text in row]
  tokenizer, start = synthetic_reviews.train_bpe(texts, 300), tmp_path / "start"
  run = experiments.replace(RUN, start=Pretrained(str(start), remat="none"))

  def prepared(seed):
    shutil.rmtree(start, ignore_errors=True)
    params = {"lm": model.init(jax.random.key(seed))}
    hf_checkpoint.save(start, MODEL, params, tokenizer=tokenizer)
    rollouts_program.prepare(run, tmp_path, Inputs(), {}, quiet)

  prepared(0)
  prepared(0)
  with pytest.raises(ValueError, match=r"changed\n  start_sha256: "):
    prepared(1)
  counts = sealed_files.read_json(tmp_path / "data.json")
  del counts["start_sha256"]  # as in runs begun before it was kept
  (tmp_path / "data.json").write_text(json.dumps(counts))
  prepared(1)


def test_held_out_prompts_of_a_run_without_any_are_refused(assembled):
  parts, _ = assembled
  loaded = rollouts_program.check(BARE, {}).loaded
  with pytest.raises(ValueError, match=r"holds no prompts out; set Evaluation\.share"):
    rollouts_program.held_out(BARE, parts.run_dir, loaded, parts.tokenizer, {})
  held = experiments.replace(BARE, evaluation=Evaluation(share=0.3))
  apart = rollouts_program.held_out(held, parts.run_dir, loaded, parts.tokenizer, {})
  assert len(apart.prompts) == len(apart.texts) > 0 and apart.examples == []
