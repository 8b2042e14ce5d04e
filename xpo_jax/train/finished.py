"""What is done with a finished run: judge its policy, let it write, hand it on."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax

from xpo_jax.data import records, tokenise
from xpo_jax.models import pretrained, sample, transformer
from xpo_jax.train import configure, evaluate, inputs, offline, sequences
from xpo_jax.train.experiment import Trained
from xpo_jax.train.inputs import Memory
from xpo_jax.types import Layout


def evaluate_run(
  run_dir: str | Path,
  *,
  reward: evaluate.RewardFn | None = None,
  prompts: int = 128,
  completions: int = 4,
  max_tokens: int | None = None,
  seed: int = 0,
  batch: int = 64,
  memory: Memory | None = None,
) -> evaluate.Report:
  """Judges a run's policy on its held-out prompts and writes evaluation.json.

  Args:
    run_dir: a finished run whose experiment holds data out (`Evaluation`).
    reward: full texts -> rewards; None measures everything else.
    prompts: at most so many different held-out prompts, in the data's order.
    completions: samples a prompt.
    max_tokens: longest completion; None takes the experiment's limit.
    seed: of the sampling.
    batch: prompts decoded at once.
    memory: records by name, where the run was given some.

  Returns:
    The report, also written as evaluation.json and samples.jsonl.

  Raises:
    ValueError: the run is not finished, holds nothing out, or sets no limit.
  """
  run_dir, memory = Path(run_dir), memory or {}
  experiment, _ = configure.read(run_dir)
  policy = pretrained.load(policy_dir(run_dir))
  loaded = inputs.load(experiment.data, experiment.data, memory)
  stage = run_dir / offline.START / offline.POLICY
  trained = isinstance(experiment.start, Trained)
  reference = inputs.begin(experiment, run_dir, loaded, stage if trained else None)
  _, held_out, _ = inputs.prepare(
    experiment, loaded, reference.tokenizer, run_dir, memory
  )
  if not held_out:
    raise ValueError(
      f"{run_dir} holds no data out; set Evaluation.share or Evaluation.path and train "
      "again"
    )
  limit = experiment.data.limits.completion
  max_tokens = limit if max_tokens is None else max_tokens
  if max_tokens is None:
    raise ValueError("max_tokens: the experiment sets no limit either; name one")
  first = {example.prompt.tobytes(): example for example in reversed(held_out)}
  judged = list(reversed(first.values()))[:prompts]
  answers = None
  if held_out[0].layout in (Layout.PAIR, Layout.DEMO):
    answers = [
      evaluate.decode(policy.tokenizer, example.completions[0]) for example in judged
    ]
  model = transformer.model(reference.config)
  report = evaluate.policy_report(
    model,
    policy.params,
    reference.params,
    [example.prompt for example in judged],
    policy.tokenizer,
    reward,
    max_tokens=max_tokens,
    key=jax.random.key(seed),
    completions=completions,
    chosen=answers,
    batch=batch,
  )
  if held_out[0].layout is Layout.PAIR:
    stats = sequences.score_pairs(
      model, policy.params, reference.params, held_out, batch=batch
    )
    right = evaluate.accuracy(stats["logp_BK"] - stats["ref_logp_BK"])
    measures = dict(report.measures) | {"preference_accuracy": right}
    report = report._replace(measures=measures)
  about = {
    "prompts": len(judged),
    "completions a prompt": completions,
    "longest": max_tokens,
    "seed": seed,
  }
  evaluate.write(run_dir, report, about)
  return report


def policy_dir(directory: str | Path) -> Path:
  """The Hugging Face directory of a finished run, or the directory itself.

  Raises:
    ValueError: a run that is not finished.
  """
  directory = Path(directory)
  if not (directory / configure.FILE).exists():
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
  max_tokens: int = 64,
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
    max_tokens: longest completion.
    temperature, top_k, top_p, greedy: see `models.sample`.
    seed: of the draws.

  Returns:
    For each prompt its completions.
  """
  directory = Path(directory)
  held = pretrained.load(policy_dir(directory))
  if held.tokenizer is None:
    raise ValueError(f"{directory} has no tokenizer; save one beside the weights")
  template = tokenise.Template()
  if (directory / configure.FILE).exists():
    template = configure.read(directory)[0].data.template
  rows = [records.Prompt(str(i), text) for i, text in enumerate(prompts)]
  ids = tokenise.prompts(rows, held.tokenizer, template)
  prompt_BP, length_B = sample.pad(ids)
  samples = sample.sample(
    transformer.model(held.config),
    held.params["lm"],
    prompt_BP,
    length_B,
    completions=completions,
    max_tokens=max_tokens,
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
      evaluate.decode(held.tokenizer, row[:size])
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
