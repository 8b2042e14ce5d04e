"""Evaluates a finished run: reward, KL, diversity; generates from and exports it."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.data import records, sealed_files, tokenise
from xpo_jax.data.render import Template
from xpo_jax.evaluation import (
  bootstrap,
  checkpoint_win_rates,
  measure_policy,
  policies,
  sequence_logps,
)
from xpo_jax.evaluation.checkpoint_win_rates import RunJudge
from xpo_jax.evaluation.measure_policy import Draws, Report
from xpo_jax.feedback import protocol, reward_model
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.sharding import distributed
from xpo_jax.train import loading, loop, progress, run_directory, stages
from xpo_jax.train.loading import Datasets
from xpo_jax.train.state import Policy
from xpo_jax.types import Layout

FILE, SAMPLES = "evaluation.json", "samples.jsonl"


def evaluate_run(
  run_dir: str | Path,
  *,
  reward: measure_policy.RewardFn | RunJudge | None = None,
  prompts: int = 128,
  completions: int = 4,
  max_completion_tokens: int | None = None,
  seed: int = 0,
  batch: int = 64,
  datasets: Datasets | None = None,
) -> Report:
  """Evaluates a run's policy on its held-out prompts and writes evaluation.json.

  Policy and start are sampled at the temperature that the run trained at.

  Args:
    run_dir: a finished run whose experiment holds data out (`Evaluation`).
    reward: full texts -> rewards, or a judge. None: the run's own feedback; where it
      has none, rewards are left out.
    prompts: largest number of different held-out prompts, in the data's order.
    completions: samples of each prompt.
    max_completion_tokens: longest completion; None: the experiment's limit.
    seed: of the sampling.
    batch: prompts decoded at once.
    datasets: records by name, where the run was given some.

  Returns:
    The report, also written as evaluation.json and samples.jsonl; for a run on rollouts
    also win_rates.json, win rates between its checkpoints.

  Raises:
    ValueError: the run is not finished, holds nothing out, or sets no limit; a number
      of prompts, completions, tokens or of a batch below 1; a judge that abstains.
  """
  run_dir, datasets = Path(run_dir), datasets or {}
  recorded, _ = yaml_file.read(run_dir)
  policy = hf_checkpoint.load(policy_dir(run_dir))
  data = recorded.data
  if max_completion_tokens is None:
    max_completion_tokens = data.max_completion_tokens
  if max_completion_tokens is None:
    raise ValueError(
      "max_completion_tokens: the experiment sets no limit either; name one"
    )
  sizes = {"prompts": prompts, "completions": completions}
  sizes |= {"max_completion_tokens": max_completion_tokens, "batch": batch}
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"evaluate_run: {name} is {size}; it must be at least 1")
  judge = checkpoint_win_rates.judge(data.feedback, policy, reward)
  experiment = stages.resolved(recorded, run_dir, None, datasets)
  loaded = loading.load(data.source, data.source, datasets, run_dir / loading.RECORDS)
  start = loading.start(experiment, run_dir, loaded)
  held_out = loop.maker(experiment).held_out(
    experiment, run_dir, loaded, start.tokenizer, datasets
  )
  setup = measure_policy.EvalSetup(
    transformer.model(start.config),
    start.policy,
    held_out.prompts[:prompts],
    policy.tokenizer,
    GenerationConfig(max_completion_tokens, completions, temperature=data.temperature),
    batch=batch,
  )
  key = jax.random.key(seed)
  ours, theirs = (
    measure_policy.draw_over_processes(setup, params, key)
    for params in (policy.params, start.policy)
  )
  chosen = _chosen(held_out, policy.tokenizer, len(ours.prompts))
  report = _judged(
    judge, held_out.texts[:prompts] or ours.prompts, ours, theirs, chosen
  )
  if held_out.examples and held_out.examples[0].layout is Layout.PAIR:
    accuracy = _preference_accuracy(held_out.examples, policy, start, batch)
    measures = dict(report.measures) | {"preference_accuracy": accuracy}
    report = report._replace(measures=measures)
  about = {
    "prompts": len(report.policy.prompts),
    "completions a prompt": completions,
    "longest": max_completion_tokens,
    "seed": seed,
  }
  if data.temperature != 1 or data.feedback is not None:
    about["temperature"] = data.temperature
  if judge is not None and data.feedback is not None:
    about["judge"] = judge.name
    checkpoint_win_rates.measure(run_dir, judge)
  write(run_dir, report, about)
  return report


def _chosen(held_out, tokenizer, count: int) -> list[str] | None:
  """The chosen completion of each prompt; None where the data have none."""
  examples = held_out.examples
  if not examples or examples[0].layout not in (Layout.PAIR, Layout.DEMO):
    return None
  first = {example.prompt.tobytes(): example for example in reversed(examples)}
  return [
    tokenise.decode(tokenizer, example.completions[0])
    for example in list(reversed(first.values()))[:count]
  ]


def _judged(
  judge: RunJudge | None,
  prompts: Sequence[str],
  ours: Draws,
  theirs: Draws,
  chosen: Sequence[str] | None,
) -> Report:
  """Compares the policy's samples with the start's, by rewards or win rates."""
  chosen_P = None
  if judge is not None and judge.scorer is not None:
    ours, theirs = (_rewarded(judge, prompts, draws) for draws in (ours, theirs))
    if chosen is not None:
      texts = [[completion] for completion in chosen]
      chosen_P = protocol.score_groups(judge.scorer, prompts, texts)[:, 0]
  report = measure_policy.beside(ours, theirs, chosen_P)
  if chosen is not None:
    report = report._replace(chosen=tuple(chosen))
  if judge is None or judge.scorer is not None:
    return report
  opponents = [completions[:1] for completions in theirs.texts]
  preference = protocol.both_orders(judge.preference)
  rate_PK = protocol.win_rates_against(
    preference, prompts, ours.texts, opponents_BJ=opponents
  )
  _refuse_abstentions(rate_PK)
  rate = bootstrap.bootstrap_mean(measure_policy.per_prompt(rate_PK))
  measures = dict(report.measures) | {"win_rate_vs_reference": rate}
  return report._replace(measures=measures)


def _rewarded(judge: RunJudge, prompts: Sequence[str], draws: Draws) -> Draws:
  reward_PK = protocol.score_groups(judge.scorer, prompts, draws.texts)
  _refuse_abstentions(reward_PK)
  return draws._replace(reward_PK=reward_PK.astype(np.float64))


def _refuse_abstentions(verdict_PK: np.ndarray) -> None:
  if count := protocol.count_abstentions(verdict_PK):
    raise ValueError(
      f"the judge abstains on {count} of {verdict_PK.size} completions, and what is "
      "left would be no sample of the policy; judge by another one with --reward"
    )


def _preference_accuracy(examples, policy, start, batch: int) -> bootstrap.Interval:
  """Fraction of held-out pairs that the log-ratio orders as the labels do."""
  model = transformer.model(start.config)
  scores = sequence_logps.score_pairs(
    model, policy.params, start.policy, examples, batch=batch
  )
  number = {}
  for example in examples:
    number.setdefault(example.prompt.tobytes(), len(number))
  cluster = np.array([number[example.prompt.tobytes()] for example in examples])
  return measure_policy.accuracy(scores["logp_BK"] - scores["ref_logp_BK"], cluster)


def write(
  run_dir: Path, report: measure_policy.Report, about: Mapping[str, Any]
) -> None:
  """Writes evaluation.json and samples.jsonl into a run, for `run_page.write`.

  Of several processes the first does.

  Args:
    run_dir: the run.
    report: what was measured.
    about: settings: step, prompts, completions, seed and the like.
  """

  if not distributed.is_first():
    return

  def plain(measures):
    return {name: bootstrap.plain(interval) for name, interval in measures.items()}

  content = {
    "about": dict(about),
    "policy": plain(report.measures),
    "reference": plain(report.reference_measures),
    "differences": plain(report.differences),
  }
  sealed_files.write_json(Path(run_dir) / FILE, content)
  lines = []
  for p, prompt in enumerate(report.policy.prompts):
    completions = [
      _answer(name, draws, p, k)
      for name, draws in (("reference", report.reference), ("policy", report.policy))
      for k in range(len(draws.texts[p]))
    ]
    line = {"prompt": prompt, "answers": completions}
    if report.chosen is not None:
      line["chosen"] = report.chosen[p]
    lines.append(line)
  sealed_files.write_lines(Path(run_dir) / SAMPLES, lines)


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


def is_run(directory: str | Path) -> bool:
  """Whether a directory is of a run, finished or not."""
  return (Path(directory) / yaml_file.FILE).exists()


def policy_dir(directory: str | Path) -> Path:
  """Finds the Hugging Face directory of a finished run, or that of its adapter; any
  other directory is one.

  Raises:
    ValueError: a run that is not finished.
  """
  directory = Path(directory)
  return run_directory.policy(directory) if is_run(directory) else directory


def template_of(directory: str | Path) -> Template:
  """The template that a run's data are rendered by; the default of a checkpoint.

  Raises:
    ValueError: as `yaml_file.read`.
  """
  if not is_run(directory):
    return Template()
  experiment, _ = yaml_file.read(Path(directory))
  return experiment.data.source.template


Sampler = Callable[
  [Sequence[records.Text | records.Prompt], GenerationConfig, int], list[list[str]]
]
"""`(prompts, config, seed) -> completions of each prompt`; a prompt is a text, or
messages for the chat template, or a record with arguments of the template."""


def generate(
  directory: str | Path,
  prompts: Sequence[records.Text],
  config: GenerationConfig,
  *,
  seed: int = 0,
) -> list[list[str]]:
  """Samples completions of prompts from a run's policy or a Hugging Face checkpoint.

  Args:
    directory: a finished run, or a Hugging Face directory.
    prompts: texts, or messages; a run's own template is applied to them.
    config: how completions are drawn.
    seed: of the draws.

  Returns:
    The completions of each prompt.

  Raises:
    ValueError: as `sampler`; messages, and no chat template.
  """
  return sampler(directory)(prompts, config, seed)


def sampler(
  directory: str | Path,
  *,
  chat_template: str | None = None,
  arguments: Mapping[str, Any] | None = None,
) -> Sampler:
  """Loads a run's policy or a Hugging Face checkpoint to sample from, once.

  Special tokens that a prompt spells are tokens where the prompt is a text for a
  checkpoint, which is typed and no data; of a run its template says. In messages they
  are text.

  Args:
    directory: a finished run, or a Hugging Face directory.
    chat_template: of a checkpoint, see `Template`; a run has its own.
    arguments: of the chat template, over those of a run.

  Raises:
    ValueError: an unfinished run, or one that names code that is not trusted
      (`trust.ForeignCode`); no tokenizer; a chat template for a run.
  """
  directory, template = Path(directory), template_of(directory)
  if chat_template is not None:
    if is_run(directory):
      raise ValueError(
        f"chat template {chat_template}: {directory} is a run, which is read by the "
        "one that it was trained with; leave it out, or name its policy's directory"
      )
    template = dataclasses.replace(template, chat_template=chat_template)
  template = dataclasses.replace(
    template, arguments={**template.arguments, **(arguments or {})}
  )
  if not is_run(directory):
    template = dataclasses.replace(template, control_tokens="parse")
  loaded = hf_checkpoint.load(policy_dir(directory))
  if loaded.tokenizer is None:
    raise ValueError(f"{directory} has no tokenizer; save one beside the weights")
  model = transformer.model(loaded.config)
  policy = Policy(model, loaded.params, loaded.tokenizer, template, step=0)

  def sample(
    prompts: Sequence[records.Text | records.Prompt],
    config: GenerationConfig,
    seed: int,
  ) -> list[list[str]]:
    return policies.sample(policy, prompts, config, seed=seed)

  return sample


def export(run_dir: str | Path, directory: str | Path, *, merged: bool = False) -> Path:
  """Copies a run's policy to a Hugging Face directory of its own.

  A reward model becomes what transformers reads as one (`reward_model.export`).

  Args:
    run_dir: a finished run, or a directory of a model or an adapter.
    directory: does not exist yet.
    merged: write a whole model in float32, with the adapter merged into its base as it
      is stored; otherwise an adapter is copied as it is.

  Raises:
    ValueError: the run is not finished, or the directory exists; a reward model that
      transformers has no class of; `merged`, and there is no adapter.
  """
  source, directory = policy_dir(run_dir), Path(directory)
  adapted = hf_checkpoint.is_adapter(source)
  if not adapted and not (source / "config.json").exists():
    raise ValueError(f"{run_dir} is neither a run nor a Hugging Face directory")
  if merged and not adapted:
    raise ValueError(f"{run_dir} has no adapter to merge; leave --merged out")
  if directory.exists():
    raise ValueError(f"{directory} exists; name a directory that does not")
  sealed_files.check_directory(source)
  if _is_reward_model(source):
    make = functools.partial(_export_reward_model, source)
    sealed_files.write_directory(directory, make, sealed=False)
    return directory
  if merged:
    whole = hf_checkpoint.load(source)

    def write(directory: Path) -> None:
      hf_checkpoint.save(
        directory, whole.config, whole.params, tokenizer=whole.tokenizer
      )

    sealed_files.write_directory(directory, write, sealed=False)
    return directory
  # Without the manifest: the copy is its user's own, to be changed at will.
  copy = functools.partial(
    shutil.copytree, source, ignore=shutil.ignore_patterns(sealed_files.MANIFEST)
  )
  sealed_files.write_directory(directory, copy, sealed=False)
  return directory


def _is_reward_model(directory: Path) -> bool:
  path = directory / reward_model.FILE
  return path.exists() and sealed_files.read_json(path)["kind"] == reward_model.REWARD


def _export_reward_model(source: Path, directory: Path) -> None:
  constant = reward_model.export(source, directory)
  progress.say(
    f"a reward here is {constant:.6g} more than the score that transformers reads, "
    f"which has no constant ({reward_model.FILE}: bias)"
  )
