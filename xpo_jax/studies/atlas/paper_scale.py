"""A paper's own experiment as commands, each setting with its source.

A recipe is in `experiments/paper_scale/`; none has been run. It is checked as far as it
can be without weights, data and accelerators: `check` builds every command's experiment
and refuses what `xpo check` refuses of it before anything is read. Names of models and
data sets on the hub were not looked up.
"""

import dataclasses
import functools
import importlib.util
import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from xpo_jax.config.experiment import Experiment, MeshShape, Rollouts
from xpo_jax.data.formats import hub
from xpo_jax.sharding import mesh as meshes
from xpo_jax.studies import find_recipe, objective_recipe
from xpo_jax.survey import table as survey_table
from xpo_jax.train import validate

FOLDER = "paper_scale"
OURS = "ours"  # the source of a setting that the paper does not state
ROUND = "ours, a round figure"  # of a number of examples
Value = float | str | bool | Sequence[str]

# Google's figures for a chip of TPU v5p: bfloat16 operations a second, bytes of memory.
CHIP, PEAK, MEMORY = "TPU v5p", 459e12, 95e9
# Shares of the peak that an estimate assumes; ours.
TRAINING_SHARE, SAMPLING_SHARE = 0.4, 0.05
# Of a parameter: float32 weights, gradient and Adam's two moments; the reference's.
_STATE_BYTES, _REFERENCE_BYTES = 16, 4
_TRAIN, _FORWARD = 6, 2  # operations a parameter and token


@dataclasses.dataclass(frozen=True)
class Command:
  """One `xpo train`.

  Attributes:
    objective: its name.
    parameters: of the policy.
    settings: source -> flag -> value, "data.rows-per-step": 64; a flag has one source.
    examples: records of its data set; None of a run on rollouts.
    examples_source: of that number.
    run: name of its directory in `runs/`; later commands read `runs/NAME`.
  """

  objective: str
  parameters: float
  settings: Mapping[str, Mapping[str, Value]]
  run: str
  examples: int | None = None
  examples_source: str = OURS

  def __post_init__(self):
    flags = [flag for own in self.settings.values() for flag in own]
    if twice := sorted({flag for flag in flags if flags.count(flag) > 1}):
      raise ValueError(
        f"Command.settings has {twice[0]!r} from two sources; choose one"
      )

  @property
  def flags(self) -> dict[str, Value]:
    """Every flag with its value."""
    return {flag: x for own in self.settings.values() for flag, x in own.items()}

  def words(self) -> list[str]:
    """The words after `xpo`."""
    return ["train", self.objective, *_words(self.flags), f"--run-dir=runs/{self.run}"]

  @functools.cached_property
  def experiment(self) -> Experiment:
    """The experiment of the command.

    Weights that an earlier command leaves in `runs/` stand as weights of the hub, which
    are read by nothing here.

    Raises:
      ValueError: see `objective_recipe.experiment`.
    """
    flags = {flag: _as_weights(value) for flag, value in self.flags.items()}
    return objective_recipe.experiment(self.objective, _words(flags), self.objective)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The commands of a paper's experiment, in order.

  Attributes:
    paper: name of its row in `survey.table`.
    experiment: what of the paper they are.
    chips: number of them that the mesh is for; ours.
    commands: none where the paper trains no language model.
    departs: what differs from the paper, and what the commands leave out.
  """

  paper: str
  experiment: str
  chips: int
  commands: tuple[Command, ...]
  departs: str

  def __post_init__(self):
    names = [row.name for row in survey_table.PAPERS]
    if self.paper not in names:
      raise ValueError(f"Recipe.paper is {self.paper!r}; allowed: {', '.join(names)}")


def on_records(
  objective: str,
  model: str,
  data: str,
  sources: Mapping[str, Mapping[str, Value]],
  *,
  run: str,
  parameters: float,
  examples: int,
  batch: int,
  chips: int,
  prompt: int,
  completion: int,
  columns: int = 2,
  examples_source: str = ROUND,
  ours: Mapping[str, Value] | None = None,
) -> Command:
  """A command on records, one group a packed row; what no source states is ours.

  Args:
    objective, sources, run, parameters, examples, examples_source: see `Command`.
    model: the start.
    data: of the records.
    batch: groups a step, for the microbatches.
    chips: that rows and weights are split over.
    prompt, completion: tokens at most.
    columns: completions of a group.
    ours: further settings.
  """
  flags: dict[str, Value] = {
    "model": model,
    "data": data,
    "start.compute-dtype": "bfloat16",
    "data.rows-per-step": batch,
    "data.microbatches": max(batch // chips, 1),
    "data.groups-per-row": 1,
    "data.row-length": prompt + columns * completion,
    "data.limits.prompt": prompt,
    "data.limits.completion": completion,
    "data.limits.long-prompt": "truncate",
    "data.bad-rows": "drop",
  }
  settings = _settings(sources, flags | _mesh(chips), ours)
  return Command(objective, parameters, settings, run, examples, examples_source)


def on_rollouts(
  objective: str,
  model: str,
  prompts: str,
  reward: str,
  sources: Mapping[str, Mapping[str, Value]],
  *,
  run: str,
  parameters: float,
  batch: int,
  chips: int,
  prompt: int,
  completion: int,
  ours: Mapping[str, Value] | None = None,
) -> Command:
  """A command on rollouts; what no source states is ours.

  Args:
    objective, model, sources, run, parameters, chips, prompt, completion, ours: see
      `on_records`.
    prompts: what completions are sampled for.
    reward: what they are judged by.
    batch: prompts an iteration.
  """
  flags: dict[str, Value] = {
    "model": model,
    "prompts": prompts,
    "reward": reward,
    "start.compute-dtype": "bfloat16",
    "data.prompts-per-iteration": batch,
    "data.microbatches": max(batch // chips, 1),
    "data.prompts.limits.prompt": prompt,
    "data.prompts.limits.long-prompt": "truncate",
    "data.prompts.bad-rows": "drop",
    "data.sampling.max-completion-tokens": completion,
  }
  settings = _settings(sources, flags | _mesh(chips), ours)
  return Command(objective, parameters, settings, run)


def _mesh(chips: int) -> dict[str, Value]:
  return {"mesh.data": 1, "mesh.fsdp": chips}


def _settings(
  sources: Mapping[str, Mapping[str, Value]],
  flags: Mapping[str, Value],
  ours: Mapping[str, Value] | None,
) -> dict[str, Mapping[str, Value]]:
  """The sources, and as ours what they leave of `flags`."""
  stated = {flag for own in sources.values() for flag in own}
  left = {flag: value for flag, value in flags.items() if flag not in stated}
  return {**sources, OURS: left | dict(ours or {})}


def recipes() -> dict[str, Recipe]:
  """Every recipe, by the name of its paper; of the checkout or installed package."""
  found = {}
  for path in sorted((find_recipe.SHIPPED / FOLDER).glob("[!_]*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for recipe in vars(module)["RECIPES"]:
      found[recipe.paper] = recipe
  return found


def check(recipe: Recipe) -> None:
  """Refuses a recipe that `xpo check` would refuse before it reads anything.

  Raises:
    ValueError: a setting of a command; a batch that the mesh does not divide; more
      memory than the chips have.
  """
  for command in recipe.commands:
    run = command.experiment
    _check_mesh(recipe, run)
    alone = dataclasses.replace(run, mesh=MeshShape(data=1))
    if isinstance(run.data, Rollouts):
      # A critic's start would be read.
      data = dataclasses.replace(alone.data, critic_init=None)
      validate.check_rollouts(dataclasses.replace(alone, data=data), {})
    else:
      validate.check_common(alone, alone.data, {})
    if (needed := memory(command, recipe.chips)) > MEMORY:
      raise ValueError(
        f"{recipe.paper}: {command.objective} needs {needed / 1e9:.0f} GB a chip for "
        f"weights and optimiser on {recipe.chips} chips; {CHIP} has {MEMORY / 1e9:.0f}"
      )


def tokens(command: Command) -> tuple[float, float]:
  """Tokens that a command trains on and those that it samples, every row full."""
  data = command.experiment.data
  if isinstance(data, Rollouts):
    samples = data.iterations * data.prompts_per_iteration * data.sampling.completions
    sampled = samples * data.sampling.max_completion_tokens
    prompts = samples * (data.prompts.limits.prompt or 0)
    return data.ppo_epochs * (sampled + prompts), sampled
  rows = data.epochs * (command.examples or 0)
  if data.steps is not None:
    rows = data.steps * data.rows_per_step
  return rows * (data.row_length or 0), 0.0


def memory(command: Command, chips: int) -> float:
  """Bytes a chip of weights, gradients, optimiser and reference, split over all."""
  objective = command.experiment.objective.build()
  reads_reference = any("ref" in stat.decoders for stat in objective.stats)
  each = _STATE_BYTES + _REFERENCE_BYTES * reads_reference
  return each * command.parameters / chips


def chip_hours(command: Command) -> float:
  """An estimate, at most: every row full, full fine-tuning, a reward model of the
  policy's size."""
  trained, sampled = tokens(command)
  training = (_TRAIN + 2 * _FORWARD) * command.parameters * trained
  sampling = _FORWARD * command.parameters * sampled
  seconds = training / (TRAINING_SHARE * PEAK) + sampling / (SAMPLING_SHARE * PEAK)
  return seconds / 3600


def lines(recipe: Recipe) -> list[str]:
  """A recipe for display: commands, sources, estimate."""
  row = next(row for row in survey_table.PAPERS if row.name == recipe.paper)
  out = [f"{recipe.paper} (arXiv:{row.arxiv}), at paper scale: not run"]
  out.append(f"  {recipe.experiment}")
  hours = 0.0
  for command in recipe.commands:
    hours += chip_hours(command)
    out += ["", f"  xpo {shlex.join(command.words())}"]
    for source, settings in command.settings.items():
      stated = ", ".join(f"{flag} {_text(x)}" for flag, x in settings.items())
      out.append(f"    {source}: {stated}")
    if command.examples is not None:
      out.append(f"    {command.examples_source}: {command.examples:,} examples")
  if recipe.commands:
    out += [
      "",
      f"  {recipe.chips} x {CHIP}, at most about {hours:,.0f} chip-hours: an estimate "
      f"at {TRAINING_SHARE:.0%} of the peak for training and {SAMPLING_SHARE:.0%} for "
      "sampling; names on the hub were not looked up",
    ]
  out.append(f"  departs: {recipe.departs}")
  return out


def run(recipe: Recipe) -> int:
  """Runs a recipe's commands one after another.

  Raises:
    ValueError: this machine has not the accelerators.
  """
  device = jax.devices()[0]
  if device.platform == "cpu" or jax.device_count() < recipe.chips:
    raise ValueError(
      f"not started: {recipe.paper} at paper scale is for {recipe.chips} x {CHIP} or "
      f"their like, and this machine has {jax.device_count()} x {device.device_kind}; "
      "run the commands above where the accelerators are"
    )
  for command in recipe.commands:
    done = subprocess.run([sys.executable, "-m", "xpo_jax", *command.words()])
    if done.returncode:
      return done.returncode
  return 0


def _words(flags: Mapping[str, Value]) -> list[str]:
  words: list[str] = []
  for flag, value in flags.items():
    name = f"--{flag}"
    if isinstance(value, bool):
      head, _, last = flag.rpartition(".")
      off = f"--{head}.no-{last}" if head else f"--no-{last}"
      words.append(name if value else off)
    elif isinstance(value, list | tuple):
      words += [name, *map(str, value)]
    else:
      words += [name, _text(value)]
  return words


def _text(value: Value) -> str:
  if isinstance(value, list | tuple):
    return " ".join(map(str, value))
  return f"{value:g}" if isinstance(value, float) else str(value)


def _as_weights(value: Value) -> Any:
  if isinstance(value, list | tuple):
    return [_as_weights(item) for item in value]
  if isinstance(value, str) and "runs/" in value:
    role, equals, path = value.rpartition("=")
    return f"{role}{equals}{hub.PREFIX}{path}"
  return value


def _check_mesh(recipe: Recipe, run: Experiment) -> None:
  sizes = validate.mesh_sizes(run.mesh, recipe.chips)
  if math.prod(sizes) != recipe.chips:
    raise ValueError(
      f"{recipe.paper}: the mesh has {math.prod(sizes)} devices, the recipe "
      f"{recipe.chips} chips"
    )
  mesh = jax.sharding.AbstractMesh(sizes, meshes.AXES)
  meshes.check_batch(mesh, run.data.rows_per_step, run.data.microbatches)
