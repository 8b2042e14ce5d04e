"""What is done with a finished run: judge its policy, let it write, hand it on."""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Trained
from xpo_jax.config.on_policy import OnlineExperiment
from xpo_jax.data import records, tokenise
from xpo_jax.evaluation import bootstrap, judged_run, measure_policy, sequence_logps
from xpo_jax.models import hf_checkpoint, sample, transformer
from xpo_jax.train import loading, offline
from xpo_jax.train.loading import Datasets
from xpo_jax.types import Layout

FILE, SAMPLES = "evaluation.json", "samples.jsonl"


def evaluate_run(
  run_dir: str | Path,
  *,
  reward: measure_policy.RewardFn | None = None,
  prompts: int = 128,
  completions: int = 4,
  max_completion_tokens: int | None = None,
  seed: int = 0,
  batch: int = 64,
  datasets: Datasets | None = None,
) -> measure_policy.Report:
  """Judges a run's policy on its held-out prompts and writes evaluation.json.

  Args:
    run_dir: a finished run whose experiment holds data out (`Evaluation`).
    reward: full texts -> rewards; None measures everything else, and by an online
      run's own feedback.
    prompts: at most so many different held-out prompts, in the data's order.
    completions: samples a prompt.
    max_completion_tokens: longest completion; None takes the experiment's limit.
    seed: of the sampling.
    batch: prompts decoded at once.
    datasets: records by name, where the run was given some.

  Returns:
    The report, also written as evaluation.json and samples.jsonl; of an online run
    win_rates.json too, its checkpoints against each other.

  Raises:
    ValueError: the run is not finished, holds nothing out, or sets no limit; a number
      of prompts, completions, tokens or of a batch below 1.
  """
  run_dir, datasets = Path(run_dir), datasets or {}
  experiment, _ = yaml_file.read(run_dir)
  policy = hf_checkpoint.load(policy_dir(run_dir))
  online = isinstance(experiment, OnlineExperiment)
  limit = (
    experiment.sampling.max_completion_tokens
    if online
    else experiment.data.limits.completion
  )
  max_completion_tokens = (
    limit if max_completion_tokens is None else max_completion_tokens
  )
  if max_completion_tokens is None:
    raise ValueError(
      "max_completion_tokens: the experiment sets no limit either; name one"
    )
  sizes = {
    "prompts": prompts,
    "completions": completions,
    "max_completion_tokens": max_completion_tokens,
  }
  for name, size in (sizes | {"batch": batch}).items():
    if size < 1:
      raise ValueError(f"evaluate_run: {name} is {size}; it must be at least 1")
  how = {
    "prompts": prompts,
    "completions": completions,
    "max_completion_tokens": max_completion_tokens,
    "seed": seed,
    "batch": batch,
    "datasets": datasets,
  }
  judge = {}
  if online:
    by = judged_run.judge(experiment, policy, reward)
    report = judged_run.policy_report(experiment, run_dir, policy, by, **how)
    judged_run.checkpoint_win_rates(run_dir, by)
    judge = {"judge": by.name, "temperature": experiment.sampling.temperature}
  else:
    report = _policy_report(experiment, run_dir, policy, reward, **how)
  about = {
    "prompts": len(report.policy.prompts),
    "completions a prompt": completions,
    "longest": max_completion_tokens,
    "seed": seed,
  }
  write(run_dir, report, about | judge)
  return report


def _policy_report(
  experiment,
  run_dir,
  policy,
  reward,
  *,
  prompts,
  completions,
  max_completion_tokens,
  seed,
  batch,
  datasets,
) -> measure_policy.Report:
  """Of an offline run: the held-out records' prompts, and their answers beside."""
  loaded = loading.load(experiment.data, experiment.data, datasets)
  stage = run_dir / offline.START / offline.POLICY
  trained = isinstance(experiment.start, Trained)
  reference = loading.begin(experiment, run_dir, loaded, stage if trained else None)
  _, held_out, _ = loading.prepare(
    experiment, loaded, reference.tokenizer, run_dir, datasets
  )
  if not held_out:
    raise ValueError(
      f"{run_dir} holds no data out; set Evaluation.share or Evaluation.path and train "
      "again"
    )
  first = {example.prompt.tobytes(): example for example in reversed(held_out)}
  judged = list(reversed(first.values()))[:prompts]
  answers = None
  if held_out[0].layout in (Layout.PAIR, Layout.DEMO):
    answers = [
      tokenise.decode(policy.tokenizer, example.completions[0]) for example in judged
    ]
  model = transformer.model(reference.config)
  report = measure_policy.policy_report(
    model,
    policy.params,
    reference.params,
    [example.prompt for example in judged],
    policy.tokenizer,
    reward,
    max_completion_tokens=max_completion_tokens,
    key=jax.random.key(seed),
    completions=completions,
    chosen=answers,
    batch=batch,
  )
  if held_out[0].layout is Layout.PAIR:
    stats = sequence_logps.score_pairs(
      model, policy.params, reference.params, held_out, batch=batch
    )
    prompt_N = {ids: number for number, ids in enumerate(first)}
    cluster = np.array([prompt_N[e.prompt.tobytes()] for e in held_out])
    right = measure_policy.accuracy(stats["logp_BK"] - stats["ref_logp_BK"], cluster)
    measures = dict(report.measures) | {"preference_accuracy": right}
    report = report._replace(measures=measures)
  return report


def write(
  run_dir: Path, report: measure_policy.Report, about: Mapping[str, Any]
) -> None:
  """Writes evaluation.json and samples.jsonl into a run, for `run_page.write`.

  Args:
    run_dir: the run.
    report: what was measured.
    about: how: step, prompts, completions, seed and the like.
  """

  def plain(measures):
    return {name: bootstrap.plain(interval) for name, interval in measures.items()}

  content = {
    "about": dict(about),
    "policy": plain(report.measures),
    "reference": plain(report.reference_measures),
    "differences": plain(report.differences),
  }
  text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
  (Path(run_dir) / FILE).write_text(text, encoding="utf-8")
  lines = []
  for p, prompt in enumerate(report.policy.prompts):
    answers = [
      _answer(name, draws, p, k)
      for name, draws in (("reference", report.reference), ("policy", report.policy))
      for k in range(len(draws.texts[p]))
    ]
    line = {"prompt": prompt, "answers": answers}
    if report.chosen is not None:
      line["chosen"] = report.chosen[p]
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  (Path(run_dir) / SAMPLES).write_text("".join(lines), encoding="utf-8")


def _answer(name: str, draws: measure_policy.Draws, p: int, k: int) -> dict[str, Any]:
  answer = {
    "model": name,
    "text": draws.texts[p][k],
    "length": int(draws.length_PK[p, k]),
    "ended": bool(draws.ended_PK[p, k]),
    "log_ratio": float(draws.log_ratio_PK[p, k]),
  }
  if draws.reward_PK is not None:
    answer["reward"] = float(draws.reward_PK[p, k])
  return answer


def policy_dir(directory: str | Path) -> Path:
  """The Hugging Face directory of a finished run, or the directory itself.

  Raises:
    ValueError: a run that is not finished.
  """
  directory = Path(directory)
  if not (directory / yaml_file.FILE).exists():
    return directory
  if not (directory / offline.POLICY).exists():
    raise ValueError(
      f"{directory} is not finished, it has no {offline.POLICY}/; "
      f"xpo resume {directory}"
    )
  return directory / offline.POLICY


def generate(
  directory: str | Path,
  prompts: Sequence[str],
  *,
  completions: int = 1,
  max_completion_tokens: int = 64,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  greedy: bool = False,
  seed: int = 0,
) -> list[list[str]]:
  """Completions of prompts by a run's policy or a Hugging Face checkpoint.

  Args:
    directory: a finished run, or a Hugging Face directory.
    prompts: texts; a run's own template is put around them.
    completions: how many for each.
    max_completion_tokens: longest completion.
    temperature, top_k, top_p, greedy: see `models.sample`.
    seed: of the draws.

  Returns:
    For each prompt its completions.
  """
  directory = Path(directory)
  held = hf_checkpoint.load(policy_dir(directory))
  if held.tokenizer is None:
    raise ValueError(f"{directory} has no tokenizer; save one beside the weights")
  template = tokenise.Template()
  if (directory / yaml_file.FILE).exists():
    experiment, _ = yaml_file.read(directory)
    online = isinstance(experiment, OnlineExperiment)
    template = (experiment.prompts if online else experiment.data).template
  rows = [records.Prompt(str(i), text) for i, text in enumerate(prompts)]
  ids = tokenise.tokenise_prompts(rows, held.tokenizer, template)
  prompt_BP, length_B = sample.pad(ids)
  samples = sample.sample(
    transformer.model(held.config),
    held.params["lm"],
    prompt_BP,
    length_B,
    completions=completions,
    max_completion_tokens=max_completion_tokens,
    key=jax.random.key(seed),
    row_B=jax.numpy.arange(len(ids)),
    stop_ids=(held.tokenizer.eos_token_id,),
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    greedy=greedy,
  )
  samples = dataclasses.asdict(jax.device_get(samples))
  return [
    [
      tokenise.decode(held.tokenizer, row[:size])
      for row, size in zip(rows, sizes, strict=True)
    ]
    for rows, sizes in zip(samples["tokens_BKT"], samples["length_BK"], strict=True)
  ]


def export(run_dir: str | Path, directory: str | Path) -> Path:
  """Copies a run's policy to a Hugging Face directory of its own.

  Raises:
    ValueError: the run is not finished, or the directory exists.
  """
  source, directory = policy_dir(run_dir), Path(directory)
  if not (source / "config.json").exists():
    raise ValueError(f"{run_dir} is neither a run nor a Hugging Face directory")
  if directory.exists():
    raise ValueError(f"{directory} exists; name a directory that does not")
  shutil.copytree(source, directory)
  return directory
