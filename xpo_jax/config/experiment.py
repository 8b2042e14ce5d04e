"""An experiment as a value: what to train, on what, from where, how, how it is judged.

Every class here is a frozen dataclass that refuses bad values when it is made. It can
be printed, compared, stored as YAML, changed from a shell (`configure`) and run
(`offline.train`). Hyperparameters of a method live in `ObjectiveConfig` and nowhere
else.
"""

import dataclasses
import difflib
import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Literal

from xpo_jax import objectives
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import split
from xpo_jax.data.sources import Reading
from xpo_jax.data.tokenise import Limits, Template
from xpo_jax.models.config import Config
from xpo_jax.models.lora import Adapter
from xpo_jax.types import AuxLoss, Objective

Factory = Callable[..., Objective]


@dataclasses.dataclass(frozen=True, init=False)
class ObjectiveConfig:
  """An objective by factory and hyperparameters, built when the run starts.

  Attributes:
    name: a name of the index `xpo_jax.objectives`, or "module:factory" of your own.
    hparams: every argument of the factory, defaults filled in, so that the record of a
      run does not change with a later default.
  """

  name: str
  hparams: Mapping[str, Any]

  def __init__(self, objective: str | Factory, /, **hparams: Any):
    """Takes the factory or its name, and its arguments; nested `ObjectiveConfig`s are
    built too.

    Raises:
      ValueError: unknown objective, a hyperparameter the factory lacks or misses, or a
        value it refuses.
    """
    name = objective if isinstance(objective, str) else name_of(objective)
    object.__setattr__(self, "name", name)
    object.__setattr__(self, "hparams", bound(name, hparams))
    self.build()

  def build(self, **traced: Any) -> Objective:
    """The objective; `traced` overrides hyperparameters, by numbers under a trace if
    need be."""
    hparams = {k: _built(value) for k, value in (dict(self.hparams) | traced).items()}
    return factory(self.name)(**hparams)


def bound(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
  """Every argument of a factory, defaults filled in, in the order of its signature.

  Raises:
    ValueError: an argument that the factory lacks or misses.
  """
  signature = inspect.signature(factory(name)).parameters
  unknown = sorted(set(given) - set(signature))
  if unknown:
    close = difflib.get_close_matches(unknown[0], signature, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    known = ", ".join(signature) or "none"
    raise ValueError(
      f"{name} has no hyperparameter {unknown[0]!r}{meant}; its hyperparameters: "
      f"{known}"
    )
  defaults = {k: p.default for k, p in signature.items() if p.default is not p.empty}
  hparams = defaults | dict(given)
  missing = [k for k in signature if k not in hparams]
  if missing:
    raise ValueError(
      f"{name} needs a value for its hyperparameter {', '.join(missing)}"
    )
  return {k: hparams[k] for k in signature}


def factory(name: str) -> Factory:
  """The factory of an index name, or of "module:factory".

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  if ":" not in name:
    return objectives.get(name)
  module, _, attribute = name.partition(":")
  found = vars(importlib.import_module(module)).get(attribute)
  if not callable(found):
    raise ValueError(f"{module} has no factory {attribute!r}")
  return found


@dataclasses.dataclass(frozen=True)
class Data:
  """What is trained on and how it is cut into steps.

  Attributes:
    path: a .jsonl or .jsonl.gz file, a TFDS directory (`data.tfds`), "hub:NAME" for a
      Hugging Face data set, "world:NUMBER" for so many reviews of the embedded world,
      or the name of records handed to `offline.train`.
    split: of a TFDS or Hugging Face data set.
    portion: only the rows of these prompts, by a hash of `seed` and the prompt:
      "train" (80 %), "tune" or "test" (10 % each); None: all rows.
    limit: use only the first so many records, or None.
    reading: which columns mean what.
    template: how a record becomes text.
    limits: longest prompt and completion in tokens.
    bad_rows: "stop" with a list of them, or "drop" them, counted and listed in a file.
    transform: "module:function" that turns the examples and the tokenizer into other
      examples before they are laid out, or None; such as
      "xpo_jax.feedback.preference_model:both_orders".
    row_length: tokens of a packed row; None: the longest group.
    rows_per_step: rows of an optimiser step, all microbatches and devices together.
    microbatches: gradient accumulation; divides rows_per_step.
    groups_per_row: most prompt groups in a row; None: as many as fit; 1: a step is
      rows_per_step groups.
    epochs: passes over the data.
    steps: stop after so many steps, or None for whole epochs.
    seed: order of the rows, portions and held-out share, and KTO's mismatched answers.
    reference_cache: directory of the reference's log-probs, shared by the runs that
      name it; None keeps them in the run's own.
  """

  path: str
  split: str = "train"
  portion: str | None = None
  limit: int | None = None
  reading: Reading = dataclasses.field(default_factory=Reading)
  template: Template = dataclasses.field(default_factory=Template)
  limits: Limits = dataclasses.field(default_factory=Limits)
  bad_rows: Literal["stop", "drop"] = "stop"
  transform: str | None = None
  row_length: int | None = None
  rows_per_step: int = 16
  microbatches: int = 1
  groups_per_row: int | None = None
  epochs: int = 1
  steps: int | None = None
  seed: int = 0
  reference_cache: str | None = None

  def __post_init__(self):
    if self.bad_rows not in ("stop", "drop"):
      raise ValueError(f"Data.bad_rows is {self.bad_rows!r}; allowed: 'stop', 'drop'")
    if self.transform is not None and ":" not in self.transform:
      raise ValueError(
        f"Data.transform is {self.transform!r}; it must be 'module:function'"
      )
    check_portion(self)
    check_positive(self, "limit", "row_length", "rows_per_step", "microbatches")
    check_positive(self, "groups_per_row", "epochs", "steps")
    check_not_negative(self, "seed")
    if self.rows_per_step % self.microbatches:
      raise ValueError(
        f"Data.microbatches is {self.microbatches}, which does not divide "
        f"rows_per_step = {self.rows_per_step}"
      )


@dataclasses.dataclass(frozen=True)
class Scratch:
  """Start from random weights.

  Attributes:
    model: the architecture.
    tokenizer: directory of a Hugging Face tokenizer; None trains a byte-level BPE of
      `model.vocab` entries on the data.
  """

  model: Config
  tokenizer: str | None = None


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """Start from a Hugging Face directory.

  Attributes:
    directory: config.json, safetensors, tokenizer.
    compute_dtype: dtype of activations.
    remat: recompute each block in the backward pass instead of keeping it.
  """

  directory: str
  compute_dtype: str = "float32"
  remat: bool = True


@dataclasses.dataclass(frozen=True)
class Trained:
  """Start from the final policy of an earlier stage (SFT before DPO), which is also
  the reference. The stage runs first, in `RUN/start`.

  Attributes:
    experiment: the earlier stage.
  """

  experiment: "Experiment"


Start = Scratch | Pretrained | Trained


@dataclasses.dataclass(frozen=True)
class AuxLossConfig:
  """A further objective of a run, on data of its own: `types.AuxLoss` as a value.

  PPO-ptx is PPO with `AuxLossConfig(27.8, ObjectiveConfig("sft"),
  Data("texts.jsonl"))`; NPO keeps what is not to be forgotten with `AuxLossConfig(1.0,
  ObjectiveConfig("sft"), Data("keep.jsonl"), "retain")`.

  Attributes:
    weight: of its loss in the sum that is minimised; > 0.
    objective: what is minimised. A reference that it reads is the run's, scored with
      every step.
    data: what on. The steps of the run read its batches in turn and begin again after
      the last; each is divided by its own count, whatever the size of the run's.
    name: of its metrics: `loss/NAME/term`, `NAME/metric`.
  """

  weight: float
  objective: ObjectiveConfig
  data: Data
  name: str = "text"

  def __post_init__(self):
    if not 0 < self.weight < math.inf:
      raise ValueError(
        f"AuxLossConfig.weight is {self.weight}; it must be a number > 0"
      )
    if not self.name.isidentifier():
      raise ValueError(
        f"AuxLossConfig.name is {self.name!r}; it must be a word, as in 'text'"
      )

  def build(self) -> AuxLoss:
    """The part that the step takes."""
    return AuxLoss(self.weight, self.objective.build(), self.name)


def check_names(parts: tuple[AuxLossConfig, ...]) -> None:
  """Refuses two parts of one name."""
  names = [part.name for part in parts]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(
        f"two parts are called {name!r}; give each AuxLossConfig.name its own"
      )


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each axis of the mesh; their product is the number of devices.

  Attributes:
    data: copies of the model, each with its rows; None: all devices that the other
      axes leave. 1 x 1 x 1 is one device, however many there are.
    fsdp: shards of parameters and optimiser state; rows are split over it too.
    tensor: shards of heads, MLP and vocabulary.
  """

  data: int | None = None
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    check_positive(self, "data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Loop:
  """What happens between steps.

  Attributes:
    log_every: steps between two lines on the screen; metrics are fetched as often.
    eval_every: steps between two passes over the held-out data; None: after the last.
    checkpoint_every: steps between two checkpoints; None: after the last.
    keep: checkpoints kept.
    wandb: project at Weights & Biases, or None.
  """

  log_every: int = 10
  eval_every: int | None = None
  checkpoint_every: int | None = None
  keep: int = 2
  wandb: str | None = None

  def __post_init__(self):
    check_positive(self, "log_every", "eval_every", "checkpoint_every", "keep")


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Which data the policy is judged on.

  Attributes:
    path: held-out data of its own, read like `Data.path`; None splits some off.
    split: of a TFDS builder or a data set of the hub.
    portion: as `Data.portion`, by the seed of the training data.
    share: share of the prompts held out where `path` is None; a prompt is on one side
      only. 0 holds out nothing.
    limit: use only so many held-out records (prompts, in an online run), or None.
  """

  path: str | None = None
  split: str = "test"
  portion: str | None = None
  share: float = 0.0
  limit: int | None = None

  def __post_init__(self):
    check_portion(self)
    check_positive(self, "limit")
    if not 0 <= self.share < 1:
      raise ValueError(f"Evaluation.share is {self.share}; it must be in [0, 1)")
    if self.path is not None and self.share:
      raise ValueError(
        f"Evaluation.path is {self.path!r} and share is {self.share}: held-out data "
        "come from a file or from a share of the training data, not both"
      )


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One run.

  Attributes:
    objective: what is minimised.
    data: what it is minimised on.
    start: where the policy and the reference start.
    optimizer: how.
    loop: logging, held-out evaluation, checkpoints.
    mesh: over which devices.
    evaluation: held-out data.
    seed: of fresh weights and of the method's draws.
    adapter: train low-rank adapters on the start, which stays as it is and is the
      reference too; None trains every weight.
    parts: what else is minimised, each on data of its own.
  """

  objective: ObjectiveConfig
  data: Data
  start: Start
  optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
  loop: Loop = dataclasses.field(default_factory=Loop)
  mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
  evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
  seed: int = 0
  adapter: Adapter | None = None
  parts: tuple[AuxLossConfig, ...] = ()

  def __post_init__(self):
    check_names(self.parts)
    check_not_negative(self, "seed")


def check_positive(config: Any, *fields: str) -> None:
  """Refuses a field of a config that is set and no whole number from 1, by name."""
  _check_whole(config, fields, 1)


def check_not_negative(config: Any, *fields: str) -> None:
  """Refuses a field of a config that is set and no whole number from 0, by name."""
  _check_whole(config, fields, 0)


def _check_whole(config: Any, fields: tuple[str, ...], least: int) -> None:
  for field in fields:
    value = vars(config)[field]
    if value is None or (isinstance(value, numbers.Integral) and value >= least):
      continue
    raise ValueError(
      f"{type(config).__name__}.{field} is {value!r}; it must be a whole number, at "
      f"least {least}"
    )


def check_portion(config: Any) -> None:
  """Refuses a portion of the data that is none of `split.PORTIONS`."""
  if config.portion is not None and config.portion not in split.PORTIONS:
    raise ValueError(
      f"{type(config).__name__}.portion is {config.portion!r}; allowed: "
      f"{', '.join(split.PORTIONS)}, or None for all rows"
    )


def name_of(given: Factory) -> str:
  """The index name of an objective's factory, else "module:factory"."""
  name = given.__name__
  if name in objectives.NAMES and objectives.get(name) is given:
    return name
  return f"{given.__module__}:{given.__qualname__}"


def _built(value: Any) -> Any:
  if isinstance(value, ObjectiveConfig):
    return value.build()
  if type(value) in (list, tuple):  # a NamedTuple, such as a link, stays whole
    return tuple(_built(item) for item in value)
  return value
