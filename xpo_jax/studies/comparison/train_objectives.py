"""Every objective that pairs can train, from the same start, on the same pairs.

What moves a policy along its frontier is the peak learning rate, for every objective.
It is the one hyperparameter that all have, it means the same in each (under Adam the
scale of a loss does not change a step), and it reaches every KL. A beta does neither:
IPO's is the inverse of a margin, SimPO's multiplies another reward, some objectives
have none, and at a fixed rate the smallest beta stops short of the KLs compared. All
other hyperparameters stay at their papers' defaults, except for those of
`Comparison.configured`.

Where to run is found by one search for all: the same rule, the same number of runs for
each seed. It sees KL on the tune split and never a reward; all its runs make the
frontier.
"""

import concurrent.futures
import json
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import audit, sealed_files
from xpo_jax.evaluation import measure_policy
from xpo_jax.models import hf_checkpoint
from xpo_jax.studies.comparison import learning_rates
from xpo_jax.studies.comparison.settings import (
  ComparedObjective,
  Comparison,
  Trial,
  barrier,
  feedback,
  read,
  write,
)
from xpo_jax.studies.sentiment import train_methods
from xpo_jax.studies.sentiment.settings import learning_rate_hparam
from xpo_jax.types import Params

Say = Callable[[str], None]
_SETTINGS, _START, _RESULTS = "comparison.json", "start", "objectives"


class ComparisonResult(NamedTuple):
  """All measurements; the page is made from them.

  Attributes:
    comparison: the settings.
    corpus: name of the corpus.
    counts: facts of the data, by name.
    sft: the start's own draws.
    pool_PS: rewards of its pool of samples.
    entries: every objective that was compared.
    left_out: name of another -> why it was not.
    seconds: stage -> seconds of this process.
  """

  comparison: Comparison
  corpus: str
  counts: dict[str, str]
  sft: measure_policy.Draws
  pool_PS: np.ndarray
  entries: list[ComparedObjective]
  left_out: dict[str, str]
  seconds: dict[str, float]


def run(comparison: Comparison, run_dir: Path, say: Say = print) -> ComparisonResult:
  """Runs a comparison, or what an interrupted one left to do.

  The start and every objective's results are kept in the directory as they are made.
  Pairs and the start's samples, cheap and of a fixed seed, are made again.

  Args:
    comparison: the settings.
    run_dir: a new directory, or that of a comparison with the same settings.
    say: takes a line of progress.

  Raises:
    BadRecords: a text that cannot be used.
    ValueError: other settings than the directory's; see `train_methods.prepare`.
  """
  began = time.perf_counter()
  seconds = {}

  def done(stage: str) -> None:
    seconds[stage] = time.perf_counter() - began - sum(seconds.values())

  left_out = {name: barrier(name) for name in comparison.names()}
  names = [name for name, reason in left_out.items() if reason is None]
  searching, judging = comparison.searching(), comparison.judging()
  data = train_methods.prepare(judging)
  train_methods.check_prompts(searching, data.corpus)
  _claim(comparison, run_dir)
  if data.corpus.dropped:
    audit.write_bad_records(data.corpus.dropped, run_dir / "bad_rows.jsonl")
  start = _start(data, run_dir / _START, say)
  done("start")
  corpus, model = data.corpus, data.model
  tune, test = (
    train_methods.PolicyEvaluator(study, corpus, model, start)
    for study in (searching, judging)
  )
  sft, pool_PS = test.draws(start, comparison.seed), test.pool(start)
  trainer = train_methods.PairTrainer(comparison, corpus, model, start, test)
  done("pairs, samples of the start")
  entries = []
  for i, name in enumerate(names, 1):
    path = run_dir / _RESULTS / f"{name}.json"
    use = comparison.objective(name)
    entry = read(path) if path.exists() else None
    if entry is None or entry.error is not None or entry.hparams != _hparams(use):
      minutes = (time.perf_counter() - began) / 60
      say(f"[{minutes:4.1f} min] {name} ({i} of {len(names)})")
      entry = _one(comparison, use, trainer, tune, test)
      write(path, entry)
    entries.append(entry)
  done("objectives")
  counts = {
    "texts": sum(map(len, corpus.demonstrations.values())),
    "dropped rows": len(corpus.dropped),
    "parameters": sum(x.size for x in jax.tree.leaves(start)),
    "versions of the code": len({entry.code for entry in entries}),
  }
  left_out = {name: reason for name, reason in left_out.items() if reason}
  return ComparisonResult(
    comparison,
    corpus.name,
    counts,
    sft,
    pool_PS,
    entries,
    left_out,
    seconds,
  )


def _claim(comparison: Comparison, run_dir: Path) -> None:
  """Makes the directory, or makes sure that it is this comparison's."""
  settings = json.loads(json.dumps(yaml_file.to_dict(comparison)))
  path = run_dir / _SETTINGS
  if path.exists():
    old = sealed_files.read_json(path)["comparison"]
    # Another choice of objectives takes what there is and adds to it.
    same = {"only": None, "baseline": None}
    yaml_file.refuse_change("settings", run_dir, old | same, settings | same)
  elif not sealed_files.is_vacant(run_dir):
    raise ValueError(
      f"run directory {run_dir} exists and holds no comparison; name another with "
      "--run-dir, or remove it"
    )
  run_dir.mkdir(parents=True, exist_ok=True)
  about = {"comparison": settings, **yaml_file.surroundings()}
  sealed_files.write_json(path, about)
  (run_dir / _RESULTS).mkdir(exist_ok=True)


def _start(data, directory: Path, say: Say) -> Params:
  """The SFT policy, from the directory if it is there."""
  study, corpus, model, params = data
  if not directory.exists():
    say(f"supervised fine-tuning, {study.sft_steps} steps")
    params = train_methods.fine_tune(study, corpus, model, params, say)
    sealed_files.write_directory(
      directory,
      lambda path: hf_checkpoint.save(
        path, model.config, params, tokenizer=corpus.tokenizer
      ),
    )
  return {"lm": hf_checkpoint.load(directory).params["lm"]}


def _one(
  comparison: Comparison, use: ObjectiveConfig, trainer, tune, test
) -> ComparedObjective:
  """An objective's search; an error is its result."""
  began, busy = time.perf_counter(), time.process_time()
  objective = use.build()
  code = yaml_file.code_digest()
  entry = ComparedObjective(use.name, _hparams(use), feedback(objective), code, [], {})
  try:
    trials, seconds = _search(comparison, use, trainer, tune, test)
  # Whatever is wrong with one objective, the others go on and its error is shown.
  except Exception as error:
    traceback.print_exc()
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    return entry._replace(error=reason)
  finally:
    trainer.forget(use)
  seconds["in all"] = time.perf_counter() - began
  seconds["of the processor"] = time.process_time() - busy
  return entry._replace(trials=trials, seconds=seconds)


def _search(comparison: Comparison, use: ObjectiveConfig, trainer, tune, test):
  """All runs of an objective, and seconds by stage; each seed has its own search."""
  count = len(comparison.first_learning_rates)
  trials: list[Trial] = []
  training = 0.0
  rates = {seed: list(comparison.first_learning_rates) for seed in comparison.seeds}
  kls: dict[int, dict[float, float]] = {seed: {} for seed in comparison.seeds}
  for _ in range(comparison.rounds):
    planned = [(seed, rate) for seed in comparison.seeds for rate in rates[seed]]
    seeds, hparams = (
      [s for s, _ in planned],
      [learning_rate_hparam(rate) for _, rate in planned],
    )
    began = time.perf_counter()
    outcomes = trainer.sweep(use).attempt(trainer.runs(use, seeds, hparams))
    training += time.perf_counter() - began
    judged = _judge(planned, outcomes, tune, test)
    for trial in judged:
      kl = math.inf if trial.tune_kl is None else trial.tune_kl
      kls[trial.seed][trial.learning_rate] = kl
    trials += judged
    rates = {
      seed: learning_rates.next_rates(tried, comparison.targets, count)
      for seed, tried in kls.items()
    }
  return trials, {"training": training}


def _judge(planned, outcomes, tune, test) -> list[Trial]:
  """Judges runs, as many at a time as there are devices."""

  def one(i: int) -> Trial:
    (seed, rate), outcome = planned[i], outcomes[i]
    if outcome.diverged is not None:
      return Trial(rate, seed, None, (), (), outcome.diverged)
    with jax.default_device(devices[i % len(devices)]):
      kl = float(tune.draws(outcome.params, seed, rewarded=False).kl_PK.mean())
      draws = test.draws(outcome.params, seed)
    reward_P, kl_P = (
      tuple(measure_policy.per_prompt(x_PK).round(6).tolist())
      for x_PK in (draws.reward_PK, draws.kl_PK)
    )
    if not np.isfinite([kl, *kl_P]).all():  # finite weights whose logits overflow
      return Trial(rate, seed, None, (), (), len(outcome.curve["loss"]))
    return Trial(rate, seed, kl, reward_P, kl_P)

  devices = jax.local_devices()
  with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
    return list(pool.map(one, range(len(planned))))


def _hparams(use: ObjectiveConfig) -> dict:
  """Hyperparameters as JSON reads them back, the same in every process."""
  text = json.dumps(
    yaml_file.to_dict(use), default=lambda value: repr(value).partition(" at 0x")[0]
  )
  return json.loads(text)
