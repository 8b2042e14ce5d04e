"""What recipes of several stages share: the embedded world, stages, samples, rows.

A recipe's directory holds `study.json`, the SFT model (`sft/`), a directory a stage
and seed, each a run of the trainer, and `results.json`. Run again with the same
directory it goes on: a finished stage is read, a broken one resumed.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xpo_jax.config import experiment, yaml_file
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback
from xpo_jax.data import records, split, synthetic_reviews, tokenise
from xpo_jax.evaluation import bootstrap, measure_policy, sequence_logps
from xpo_jax.feedback import reward_model
from xpo_jax.models import hf_checkpoint, lora, peft, transformer
from xpo_jax.models.hf_checkpoint import Checkpoint
from xpo_jax.models.lora import Adapter
from xpo_jax.report import html
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage import arm_table, stage_samples
from xpo_jax.studies.multistage.arm_table import Row
from xpo_jax.studies.multistage.stage_samples import Sampled
from xpo_jax.studies.multistage.staged_world import World
from xpo_jax.train import loading, loop, run_directory
from xpo_jax.types import Params

Say = Callable[[str], None]
Score = Callable[[int, measure_policy.Draws], np.ndarray]
"""`(seed, draws) -> [P, K]`: of each sample of that seed's policy."""
STUDY, RESULTS, SFT = "study.json", "results.json", "sft"


class Lab:
  """A recipe's directory, its world, and what can be done there."""

  def __init__(self, settings: Any, run_dir: str | Path, say: Say = print):
    """Opens a directory, new or of an interrupted run with the same settings.

    Args:
      settings: the recipe's dataclass; its field `world` is the `World`.
      run_dir: the directory.
      say: takes a line of progress.

    Raises:
      ValueError: the directory holds something else, or another study.
    """
    self.world: World = settings.world
    self.run_dir, self._say = Path(run_dir), say
    self._began = time.perf_counter()
    self._start_rewards: dict[tuple[str, int], np.ndarray] = {}
    _keep(self.run_dir, yaml_file.to_dict(settings))
    data = dataclasses.replace(synthetic_world.writer(self.world).data, portion=None)
    rows = loading.load(data, data, {}).records
    self.demonstrations = split.by_prompt(rows, split.PORTIONS, data.seed)
    self.model = transformer.model(synthetic_world.config(self.world))

  @functools.cached_property
  def start(self) -> Checkpoint:
    """The SFT model: where all stages start, and the reference of all KLs."""
    self.say(f"supervised fine-tuning, {self.world.sft_steps} steps")
    return self._run(synthetic_world.writer(self.world), SFT)

  def stage(
    self,
    name: str,
    objective: ObjectiveConfig,
    rows: Sequence[records.Record],
    *,
    start: str = SFT,
    seed: int = 0,
    epochs: int = 1,
    rate: float | None = None,
    adapter: Adapter | None = None,
  ) -> Checkpoint:
    """Trains on records, or reads what was trained; the reference is the start.

    Args:
      name: of the stage's directory.
      objective: what is minimised.
      rows: what on; those that do not survive the tokenizer are dropped and counted.
      start: name of the stage it starts from.
      seed: of order and draws.
      epochs: passes over the rows.
      rate: peak learning rate; None: the world's.
      adapter: see `Experiment.adapter`.
    """
    _ = self.start
    if not rows:
      raise ValueError(f"stage {name} has nothing to train on")
    self.say(f"{name}: {objective.name} on {len(rows)} rows")
    rate = self.world.rate if rate is None else rate
    one = experiment.Experiment(
      objective,
      self.data(name, epochs, seed),
      self._at(start),
      Optimizer(learning_rate=rate, warmup_steps=10, floor=0.1),
      mesh=synthetic_world.ONE,
      seed=seed,
      adapter=adapter,
    )
    return self._run(one, name, {name: list(rows)})

  def reward(
    self,
    name: str,
    rows: Sequence[records.Record],
    *,
    objective: ObjectiveConfig | None = None,
    start: str = SFT,
    seed: int = 0,
    epochs: int = 3,
    rate: float | None = None,
  ) -> Path:
    """Trains a reward model, or reads what was trained; rewards of samples of the stage
    it starts from have mean 0 and deviation 1.

    Args:
      name: of the stage's directory.
      rows: pairs, ranked lists, or whatever the objective's layout is made of.
      objective: None: Bradley-Terry.
      start: name of the stage whose weights it starts from; the head is new.
      seed: of order and draws.
      epochs: passes over the rows.
      rate: peak learning rate; None: the world's.

    Returns:
      The directory, as `feedback.reward_model.scorer` takes it.
    """
    objective = ObjectiveConfig("bradley_terry") if objective is None else objective
    how = {"start": start, "seed": seed, "epochs": epochs, "rate": rate}
    held = self.stage(name, objective, rows, **how)
    directory = self.run_dir / name / run_directory.POLICY
    if (directory / reward_model.FILE).exists():
      return directory
    drawn = self.sample(self.policy(start).params, completions=1, seed=0)
    limits = tokenise.Limits(completion=self.world.longest)
    found = reward_model.normalise(
      reward_model.RewardModel(
        self.model, held.params, held.tokenizer, tokenise.Template(), limits
      ),
      drawn.prompts,
      [texts[0] for texts in drawn.texts_BK],
    )
    reward_model.write_description(
      directory, found.template, limits, affine=found.affine
    )
    return directory

  def online(
    self,
    name: str,
    objective: ObjectiveConfig,
    *,
    feedback: Feedback | None = None,
    start: str = SFT,
    seed: int = 0,
    datasets: loading.Datasets | None = None,
    **changes: Any,
  ) -> Checkpoint:
    """Trains on samples of its own, or reads what was trained; the reference is the
    start, the prompts are those of the training split.

    Args:
      name: of the stage's directory.
      objective: what is minimised.
      feedback: who judges; None: the world's true reward.
      start: name of the stage it starts from.
      seed: of samples and draws.
      datasets: records by name, for parts of the experiment that name them.
      changes: fields of `OnlineExperiment`, in place of those of `synthetic_world.run`.
    """
    _ = self.start
    if feedback is not None:
      changes = changes | {"feedback": feedback}
    changes = changes | {"start": self._at(start), "seed": seed}
    one = synthetic_world.run(objective, self.world, **changes)
    judge = one.data.feedback.source.name.partition(":")[2]
    self.say(f"{name}: {objective.name}, {one.data.iterations} iterations, {judge}")
    return self._run(one, name, datasets or {})

  def policy(self, stage: str) -> Checkpoint:
    """What a finished stage left; the SFT model is trained where it is missing."""
    if stage == SFT:
      return self.start
    return hf_checkpoint.load(self.run_dir / stage / run_directory.POLICY, remat=False)

  def sample(
    self,
    params: Params,
    *,
    completions: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    asked: slice = slice(None),
    sequences: int = 1024,
  ) -> Sampled:
    """Draws completions of the asked prompts and rewards them.

    Args:
      params: `{"lm": ...}` of the policy.
      completions: K.
      seed: of the draws.
      temperature, top_k: see `GenerationConfig`.
      asked: which of those prompts.
      sequences: decoded at once.
    """
    return stage_samples.draw(
      self.model,
      params,
      self.tokenizer,
      self._prompts("train")[: self.world.asked][asked],
      completions=completions,
      max_completion_tokens=self.world.longest,
      seed=seed,
      temperature=temperature,
      top_k=top_k,
      sequences=sequences,
    )

  def change(self, name: str) -> Params:
    """What a stage with an adapter added to the SFT model's kernels (`lora.delta`)."""
    base = self.start
    directory = self.run_dir / name / run_directory.ADAPTER
    adapter, params = peft.load(directory, base.config, base.params["lm"])
    return lora.delta(params, adapter)

  def judge(
    self,
    params: Params,
    seed: int,
    samples: int | None = None,
    reference: str = SFT,
  ) -> measure_policy.Draws:
    """Samples on held-out prompts, with true rewards and KL to a stage's policy.

    Args:
      params: `{"lm": ...}` of the policy.
      seed: of the draws.
      samples: completions for each prompt; None: the world's.
      reference: name of that stage.
    """
    prompts = self._prompts("test")
    if len(prompts) < self.world.prompts:
      raise ValueError(
        f"World.prompts is {self.world.prompts}, the held-out split has "
        f"{len(prompts)}; take fewer prompts or more texts"
      )
    return measure_policy.draw(
      self.model,
      params,
      self.policy(reference).params,
      stage_samples.encode(self.tokenizer, prompts[: self.world.prompts]),
      self.tokenizer,
      synthetic_reviews.true_reward,
      max_completion_tokens=self.world.longest,
      key=jax.random.fold_in(jax.random.key(seed), 4),
      completions=self.world.samples if samples is None else samples,
      batch=self.world.prompts,
    )

  def row(
    self,
    label: str,
    policies: Mapping[int, Params],
    seconds: float = 0.0,
    *,
    reference: str = SFT,
    scores: Mapping[str, Score] | None = None,
    **more: bootstrap.Interval | float,
  ) -> Row:
    """Judges an arm.

    Args:
      label: what it is called.
      policies: seed -> its policy's parameters.
      seconds: of its stages.
      reference: name of the stage whose policy KL and change are to.
      scores: further measures of the samples, by name.
      more: further measures, by name.
    """
    draws = {s: self.judge(p, s, reference=reference) for s, p in policies.items()}
    columns = {
      "reward": [d.reward_PK for d in draws.values()],
      "change": [
        d.reward_PK - self._start_reward(reference, s) for s, d in draws.items()
      ],
      "kl": [d.kl_PK for d in draws.values()],
      "length": [d.length_PK for d in draws.values()],
    }
    for name, score in (scores or {}).items():
      columns[name] = [score(seed, d) for seed, d in draws.items()]
    measures = {
      name: bootstrap.bootstrap_seeds(
        np.stack([measure_policy.per_prompt(x) for x in xs])
      )
      for name, xs in columns.items()
    }
    return Row(label, measures | more, seconds)

  def _start_reward(self, stage: str, seed: int) -> np.ndarray:
    """True rewards of a stage's draws of a seed, for paired differences."""
    if (stage, seed) not in self._start_rewards:
      drawn = self.judge(self.policy(stage).params, seed)
      self._start_rewards[stage, seed] = drawn.reward_PK
    return self._start_rewards[stage, seed]

  def nll(
    self, policies: Iterable[Params], rows: Sequence[records.Record]
  ) -> bootstrap.Interval:
    """Nats a token of demonstrations under an arm's policies, over rows and seeds.

    Args:
      policies: `{"lm": ...}` each.
      rows: held out.
    """
    limits = tokenise.Limits(completion=self.world.longest)
    examples = tokenise.tokenise(rows, self.tokenizer, limits=limits)
    tokens_P = np.array([len(example.completions[0]) for example in examples])
    found = [
      sequence_logps.score_pairs(self.model, params, params, examples)["logp_BK"][:, 0]
      for params in policies
    ]
    return bootstrap.bootstrap_seeds(-np.stack(found) / tokens_P)

  @property
  def tokenizer(self) -> Any:
    """The world's, trained with the SFT model."""
    return self.start.tokenizer

  def say(self, text: str) -> None:
    """A line of progress, with the time."""
    self._say(f"[{time.perf_counter() - self._began:5.0f} s] {text}")

  def finish(self, title: str, rows: Sequence[Row]) -> html.Table:
    """Writes results.json and returns the rows as a table."""
    return arm_table.write(self.run_dir / RESULTS, title, rows, self.world)

  def data(self, name: str, epochs: int = 1, seed: int = 0) -> experiment.Data:
    """How a stage reads records that it is handed under a name."""
    return experiment.Data(
      name,
      limits=tokenise.Limits(completion=self.world.longest),
      bad_rows="drop",
      row_length=self.world.row_length,
      rows_per_step=self.world.rows,
      epochs=epochs,
      seed=seed,
    )

  def _at(self, stage: str) -> experiment.Pretrained:
    directory = str(self.run_dir / stage / run_directory.POLICY)
    return experiment.Pretrained(directory, remat=False)

  def _run(self, one, name: str, datasets: loading.Datasets | None = None):
    """A run, the rest of it, or what it left."""
    run_dir = self.run_dir / name
    if not (run_dir / run_directory.SUMMARY).exists():
      if (run_dir / yaml_file.FILE).exists():
        done = loop.resume(run_dir, one, datasets=datasets, say=_quiet)
      else:
        done = loop.train(one, run_dir, datasets=datasets, say=_quiet)
      if not done.finished:
        raise KeyboardInterrupt  # SIGTERM: its checkpoint is written
    return hf_checkpoint.load(run_dir / run_directory.POLICY, remat=False)

  def _prompts(self, name: str) -> list[str]:
    return list(dict.fromkeys(row.prompt for row in self.demonstrations[name]))


def _keep(run_dir: Path, settings: Mapping[str, Any]) -> None:
  path = run_dir / STUDY
  if path.exists():
    old = json.loads(path.read_text(encoding="utf-8"))
    yaml_file.refuse_change("settings", run_dir, old, json.loads(json.dumps(settings)))
    return
  if run_dir.exists() and any(run_dir.iterdir()):
    raise ValueError(f"run directory {run_dir} holds something else; name another one")
  run_dir.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _quiet(text: str) -> None:
  del text
