"""Runs of adapters from the shell: they leave adapters, which stand for the policy."""

import dataclasses
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_policy
from tests.quiet import quiet
from xpo_jax import cli
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Evaluation, Prompts
from xpo_jax.config.experiment import Pretrained, Rollouts, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Precision
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data.sources import Loaded
from xpo_jax.evaluation import evaluate_run
from xpo_jax.feedback import rules
from xpo_jax.models import hf_checkpoint, peft, transformer
from xpo_jax.models.lora import Adapter
from xpo_jax.sharding import nf4
from xpo_jax.train import (
  loading,
  loop,
  metrics,
  preflight,
  records_program,
  references,
  rollouts_program,
  run_directory,
  stages,
  state,
)
from xpo_jax.train.loading import Inputs

FORM = ["--adapter.rank", "2", "--adapter.targets", "query|up", "--adapter.dora"]
STEPS = [
  "--data.steps",
  "3",
  "--data.epochs",
  "2",
  "--data.rows-per-step",
  "4",
  "--data.row-length",
  "96",
]
STEPS += ["--optimizer.learning-rate", "0.05", "--loop.log-every", "1", "--mesh.data"]
STEPS += ["1", "--data.limits.completion", "8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """`model`, `pairs.jsonl`, and the finished runs `first` and `second` on them."""
  home = tmp_path_factory.mktemp("adapters")
  tiny_policy.write(home / "model")
  tiny_policy.write_pairs(home / "pairs.jsonl", 30)
  _train(home, "first", "sft", "model", *FORM)
  _train(home, "second", "sft", "model", *FORM, "--seed", "1")
  return home


def _train(home: Path, name: str, objective: str, model: str, *more: str) -> None:
  words = ["train", objective, "--model", str(home / model)]
  words += ["--data", str(home / "pairs.jsonl"), "--run-dir", str(home / name)]
  assert cli.main([*words, *STEPS, *more]) == 0


def _experiment(home, name, **changes):
  return dataclasses.replace(yaml_file.read(home / name)[0], **changes)


def _prepared(experiment, run_dir):
  run_dir.mkdir()
  return records_program.prepare(experiment, run_dir, Inputs(), {}, quiet)


def _at(directory) -> Pretrained:
  return Pretrained(str(directory), remat="none")


def test_run_leaves_the_adapter_alone(home):
  run = home / "first"
  assert not (run / run_directory.POLICY).exists()
  assert not (run / run_directory.BASE).exists()
  weights = {path.name for path in (run / "adapter").glob("*.safetensors")}
  assert weights == {peft.WEIGHTS}
  content = json.loads((run / "adapter" / peft.CONFIG).read_text())
  assert content["base_model_name_or_path"] == str(home / "model")
  base, policy = (hf_checkpoint.load(home / x) for x in ("model", "first/adapter"))
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b), base.params["lm"], policy.params["lm"]
  )
  parts = {part for part, x in moved["blocks"].items() if any(x.values())}
  assert parts == {"query", "up"}
  assert policy.tokenizer.chat_template == tiny_policy.TEMPLATE


def test_base_in_bfloat16_computes_what_its_rounded_weights_do(home, tmp_path):
  model = hf_checkpoint.load(home / "model")
  rounded = hf_checkpoint.save(
    tmp_path / "rounded",
    model.config,
    model.params,
    tokenizer=model.tokenizer,
    dtype="bfloat16",
  )

  def trained(name, start, base):
    run = _experiment(home, "first", start=_at(start), precision=Precision(base=base))
    program = _prepared(run, tmp_path / name)
    now, losses = program.state, []
    sizes = [x.size for x in jax.tree.leaves(now.opt_state) if x.ndim]
    assert sum(sizes) == 2 * sum(x.size for x in jax.tree.leaves(now.params))
    assert {x.dtype for x in jax.tree.leaves(now.params)} == {jnp.dtype("float32")}
    for index in range(3):
      now, numbers = program.advance(now, index)
      losses.append(float(numbers["loss"]))
    return np.array(losses), program.policy(now)["lm"]["blocks"]

  wide, _ = trained("wide", home / "model", "float32")
  exact, policy = trained("exact", rounded, "float32")
  got, merged = trained("narrow", rounded, "bfloat16")
  # bfloat16 holds the rounded weights exactly; merged, adapters are not rounded away.
  np.testing.assert_allclose(got, exact, rtol=1e-6)
  for part in ("query", "up"):
    np.testing.assert_allclose(
      merged[part]["kernel"], policy[part]["kernel"], rtol=1e-5, atol=1e-6
    )
  # Each weight moves by a part of 1 / 512 at most.
  half, _ = trained("half", home / "model", "bfloat16")
  assert 0 < np.abs(half - wide).max() < 0.02 * np.abs(wide).max()


def test_base_in_4_bits_computes_what_its_values_do(home, tmp_path):
  """And leaves an adapter that is read on those values, not on the base as stored."""
  model = hf_checkpoint.load(home / "model")
  lm = state.base_in_memory("nf4", transformer.model(model.config), model.params["lm"])
  values = model.params | {"lm": jax.tree.map(np.float32, nf4.dense(lm))}
  config, tokenizer = model.config, model.tokenizer
  hf_checkpoint.save(tmp_path / "values", config, values, tokenizer=tokenizer)
  losses, merged = {}, {}
  for base, start in (("float32", tmp_path / "values"), ("nf4", home / "model")):
    run = _experiment(home, "first", start=_at(start), precision=Precision(base=base))
    program = _prepared(run, tmp_path / base)
    now, losses[base] = program.state, []
    for index in range(3):
      now, numbers = program.advance(now, index)
      losses[base].append(float(numbers["loss"]))
    merged[base] = nf4.dense(program.policy(now)["lm"]["blocks"])
  np.testing.assert_allclose(losses["nf4"], losses["float32"], rtol=1e-6)
  chex.assert_trees_all_close(merged["nf4"], merged["float32"], rtol=1e-5, atol=1e-6)
  program.export(now, program.policy(now))(tmp_path / "adapter")
  read = hf_checkpoint.load(tmp_path / "adapter")
  chex.assert_trees_all_close(
    read.params["lm"]["blocks"], merged["nf4"], rtol=1e-5, atol=1e-6
  )
  down = (x.params["lm"]["blocks"]["down"]["kernel"] for x in (read, model))
  assert not np.allclose(*down, atol=1e-3)  # not adapted: it differs by the rounding


def test_commands_read_the_adapter_and_its_base(home, tmp_path, capsys):
  run = shutil.copytree(home / "first", tmp_path / "run")
  evaluate = ["evaluate", str(run), "--prompts", "2", "--completions", "1"]
  assert cli.main(evaluate) == 0
  assert cli.main(["report", str(run)]) == 0
  assert cli.main(["export", str(run), str(tmp_path / "merged"), "--merged"]) == 0
  assert cli.main(["export", str(run), str(tmp_path / "copy")]) == 0
  capsys.readouterr()
  shown = []
  for directory in (run, run / "adapter", tmp_path / "merged", tmp_path / "copy"):
    words = ["--greedy", "--max-completion-tokens", "5"]
    assert cli.main(["generate", str(directory), *words, "the film"]) == 0
    shown.append(capsys.readouterr().out)
  assert len(set(shown)) == 1
  assert (tmp_path / "merged" / "model.safetensors").exists()
  assert {path.name for path in (tmp_path / "copy").iterdir()} >= {peft.WEIGHTS}
  assert not (tmp_path / "copy" / "model.safetensors").exists()


def test_whole_model_has_nothing_to_merge(home, tmp_path, capsys):
  words = ["export", str(home / "model"), str(tmp_path / "out"), "--merged"]
  assert cli.main(words) == 2
  assert "has no adapter to merge; leave --merged out" in capsys.readouterr().err


def test_adapter_of_random_weights_has_them_beside_it(adapted, tmp_path):
  run = shutil.copytree(adapted.run_dir, tmp_path / "moved")  # with the base
  content = json.loads((run / "adapter" / peft.CONFIG).read_text())
  assert content["base_model_name_or_path"] == str(adapted.run_dir / "base")
  (run / "adapter" / "MANIFEST.sha256.json").unlink()
  content["base_model_name_or_path"] = str(tmp_path / "run" / "base")  # is not there
  (run / "adapter" / peft.CONFIG).write_text(json.dumps(content))
  read = hf_checkpoint.load(run / "adapter")
  trained = adapted.result.params["lm"]
  chex.assert_trees_all_close(read.params["lm"], trained, atol=1e-6)
  shutil.rmtree(run / "base")
  with pytest.raises(ValueError, match=r"adapter for the base .*run/base, which does"):
    hf_checkpoint.load(run / "adapter")


def test_adapter_for_another_base_is_refused_by_name(home, tmp_path):
  shutil.copytree(home / "first" / "adapter", tmp_path / "adapter")
  (tmp_path / "adapter" / "MANIFEST.sha256.json").unlink()
  other = tmp_path / "other"
  config = hf_checkpoint.read_config(home / "model")
  lm = transformer.model(config).init(jax.random.key(9))
  hf_checkpoint.save(other, config, {"lm": lm})
  path = tmp_path / "adapter" / peft.CONFIG
  content = json.loads(path.read_text()) | {"base_model_name_or_path": str(other)}
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=r"other'\):\n  the base has other weights"):
    hf_checkpoint.load(tmp_path / "adapter")


def test_new_adapter_starts_on_the_merged_one(home, tmp_path):
  start = _at(home / "first" / "adapter")
  experiment = _experiment(home, "first", start=start)
  program = _prepared(experiment, tmp_path / "run")
  merged = hf_checkpoint.load(home / "first" / "adapter").params["lm"]
  policy = program.policy(program.state)["lm"]
  jax.tree.map(np.testing.assert_array_equal, policy, merged)


def _continued(home, **changes):
  adapter = Adapter(rank=2, targets="query|up", dora=True, continued=True)
  start, objective = _at(home / "first" / "adapter"), ObjectiveConfig("dpo")
  changes = {"start": start, "adapter": adapter, "objective": objective} | changes
  return _experiment(home, "first", **changes)


def test_training_goes_on_with_an_adapter_on_its_base(home, tmp_path):
  more = [*FORM, "--adapter.continued"]
  _train(home, "third", "dpo", "first", *more)  # the run, its adapter is meant
  run_dir = home / "third"
  first, *_ = metrics.read(run_dir)
  assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)  # policy = reference
  assert first["kl_k3"] == pytest.approx(0, abs=1e-7)
  adapted = hf_checkpoint.load_adapted(run_dir / "adapter")
  assert adapted.name == str(home / "model")  # not the adapter that it went on with
  before = hf_checkpoint.load_adapted(home / "first" / "adapter").params
  assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, before, adapted.params)))
  # What it is measured against is the policy that it started from.
  report = evaluate_run.evaluate_run(run_dir, prompts=2, completions=1)
  assert abs(report.measures["kl"].mean) > 1e-4


def _reference_logps(experiment, run_dir):
  _prepared(experiment, run_dir)
  return np.load(run_dir / run_directory.REFERENCES / "train" / "ref_logp_BKT.npy")


def test_reference_is_an_adapter_or_the_base(home, tmp_path):
  evaluate_run.export(home / "second", tmp_path / "whole", merged=True)
  # Of whole weights each, without adapters.
  plain = {"adapter": None, "start": _at(home / "model")}
  starts = {"start": "first/adapter", "base": "model", "other": "second/adapter"}
  for name, place in starts.items():
    reference = None if name == "start" else _at(home / place)
    ours = _reference_logps(_continued(home, reference=reference), tmp_path / name)
    whole = tmp_path / "whole" if name == "other" else home / place
    expected = _reference_logps(
      _continued(home, reference=_at(whole), **plain), tmp_path / f"{name} whole"
    )
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("reference", [None, "model", "second/adapter", "copy"])
def test_reference_shares_the_base(home, tmp_path, reference):
  if reference == "copy":  # of another name, and with the same weights
    shutil.copytree(home / "model", tmp_path / "copy")
    source = _at(tmp_path / "copy")
  else:
    source = reference and _at(home / reference)
  experiment = _continued(home, reference=source)
  begin = loading.start(experiment, tmp_path, Loaded("", (), (), ""))
  other = references.load(experiment, begin)
  assert other.lm is None
  assert (other.adapter is None) == (reference in ("model", "copy"))
  base = {"lm": jax.tree.map(jnp.asarray, begin.params["lm"])}
  model = transformer.model(begin.config)
  ref, _ = references.place(None, model, {"base": base}, other)
  held = jax.tree_util.tree_leaves_with_path(base["lm"])
  placed = dict(jax.tree_util.tree_leaves_with_path(ref["lm"]))
  assert all(placed[path] is leaf for path, leaf in held)


def test_rollouts_go_on_with_an_adapter(home, tmp_path):
  data = Rollouts(
    Prompts("synthetic:8"),
    Feedback(Configured(rules.matches, pattern="[aeiou]")),
    Sampling(completions=2, max_completion_tokens=4),
    iterations=2,
    prompts_per_iteration=4,
    ref_update_every=1,
  )
  experiment = _continued(
    home,
    data=data,
    objective=ObjectiveConfig("rloo"),
    reference=_at(home / "second" / "adapter"),
    evaluation=Evaluation(),
  )
  result = loop.train(experiment, tmp_path / "run", say=quiet)
  first, last = metrics.read(result.run_dir)
  assert abs(first["rollout/kl"]) > 1e-4  # to the other adapter
  assert last["rollout/kl"] == pytest.approx(0, abs=1e-4)  # to itself
  adapted = hf_checkpoint.load_adapted(tmp_path / "run" / "adapter")
  assert adapted.name == str(home / "model")


def test_rollouts_share_the_base_with_a_reference(home, tmp_path):
  data = Rollouts(
    Prompts("synthetic:8"),
    Feedback(Configured(rules.matches, pattern="[aeiou]")),
    Sampling(completions=2, max_completion_tokens=4),
    prompts_per_iteration=4,
  )
  experiment = _continued(home, data=data, objective=ObjectiveConfig("rloo"))
  parts, first = rollouts_program.assemble(experiment, tmp_path, Inputs(), {}, quiet)
  base = parts.frozen["base"]["lm"]
  assert parts.ref["lm"]["embedding"] is base["embedding"]
  pair = parts.ref["lm"]["blocks"]["up"]["lora"]
  np.testing.assert_array_equal(
    pair["a"], first.train.params["lm"]["blocks"]["up"]["a"]
  )


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"rank": 4}, r"Adapter.rank is 4 and .*continued True: .*has 2; give its own"),
    ({"alpha": 1.0}, "Adapter.alpha is 1.0"),
    ({"rslora": True}, "Adapter.rslora is True"),
    ({"dora": False}, "Adapter.dora is False"),
    ({"targets": "query"}, "is on query, up; give 'query|up'"),
  ],
)
def test_adapter_of_another_form_is_refused_before_the_run(
  home, tmp_path, change, match
):
  experiment = _continued(home)
  adapter = dataclasses.replace(experiment.adapter, **change)
  other = dataclasses.replace(experiment, adapter=adapter)
  stage = dataclasses.replace(
    other, start=Stage(_experiment(home, "first"))
  )  # not trained first
  for one in (other, stage):
    with pytest.raises(ValueError, match=match):
      loop.train(one, tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def test_what_is_no_adapter_is_not_gone_on_with(home, tmp_path):
  whole = _continued(home, start=_at(home / "model"))
  stage = Stage(_experiment(home, "first", adapter=None))
  for one in (whole, dataclasses.replace(whole, start=stage)):
    with pytest.raises(ValueError, match=r"continued is True, and the start, .*is no"):
      loop.train(one, tmp_path / "run", say=quiet)


def test_stage_of_an_adapter_is_its_adapter(home, tmp_path):
  inner = _experiment(home, "first")
  for adapter, name in ((inner.adapter, "adapter"), (None, "policy")):
    stage = Stage(dataclasses.replace(inner, adapter=adapter))
    experiment = dataclasses.replace(inner, start=stage)
    resolved = stages.resolved(experiment, tmp_path / "run", None, {})
    directory = Path(resolved.start.directory)
    assert directory.name == name and directory.parents[1] == tmp_path / "run/stages"


def test_check_takes_a_stage_of_an_adapter_for_one(home):
  records = _continued(home, start=Stage(_experiment(home, "first")))
  (_, budget) = preflight.check(records)
  assert budget.sizes["steps"] == 3
  data = Rollouts(
    Prompts("synthetic:8"),
    Feedback(Configured(rules.matches, pattern="[aeiou]")),
    Sampling(completions=2, max_completion_tokens=4),
    prompts_per_iteration=4,
  )
  rollouts = dataclasses.replace(
    records, data=data, objective=ObjectiveConfig("rloo"), evaluation=Evaluation()
  )
  *_, budget = preflight.check(rollouts)
  assert budget.sizes["parameters trained"] < budget.sizes["parameters"]
