"""A teacher: a frozen policy whose probabilities a student is trained towards.

Of any size, with the student's tokenizer and number of embeddings, so that divergences
over the whole vocabulary are defined. It is a role beside policy and reference.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from xpo_jax.data import audit
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.config import Config, Remat
from xpo_jax.models.transformer import Model
from xpo_jax.types import Objective, Params, TokenStat

TEACHER = "teacher"  # the role in `TokenStat.roles`


class Teacher(NamedTuple):
  """A teacher.

  Attributes:
    model: its decoder.
    params: `{"lm": ...}`.
  """

  model: Model
  params: Params


def reads(stats: Iterable[TokenStat]) -> bool:
  """Whether any of the statistics reads a teacher."""
  return any(TEACHER in stat.decoders for stat in stats)


def check_objective(objective: Objective, given: bool, mixed: bool) -> None:
  """Refuses a teacher that nothing reads, and an objective without the one it reads.

  Args:
    objective: with the statistics of all losses of the run.
    given: whether the run has a teacher.
    mixed: whether completions are sampled from a mixture with it.

  Raises:
    ValueError: only one of the two needs the teacher.
  """
  needed = reads(objective.stats) or mixed
  if needed and not given:
    raise ValueError(
      f"{objective.name} learns from a teacher, and Experiment.teacher is None; set it "
      "to a Pretrained directory or to the Stage that trains it"
    )
  if given and not needed:
    raise ValueError(
      f"Experiment.teacher is set, and nothing of {objective.name} reads it; leave it "
      "out, or take an objective such as gkd"
    )


def check_vocab(vocab: int, students: int) -> None:
  """Refuses a teacher of another number of embeddings than the student's.

  Args:
    vocab: rows of the teacher's embedding.
    students: rows of the student's.

  Raises:
    ValueError: the two differ.
  """
  if vocab != students:
    raise ValueError(
      f"Experiment.teacher has a vocabulary of {vocab}, the start of {students}; their "
      "divergence is over the whole vocabulary: give a teacher and a start of one "
      "tokenizer, with embeddings padded to one size"
    )


def load(
  directory: str, compute_dtype: str, remat: Remat, *, tokenizer: Any, like: Config
) -> Teacher:
  """Loads a teacher.

  Args:
    directory: a Hugging Face directory.
    compute_dtype, remat: see `Pretrained`.
    tokenizer: of the student.
    like: config of the student.

  Raises:
    ValueError: another vocabulary or tokenizer than the student's.
  """
  checkpoint = hf_checkpoint.load(directory, compute_dtype, remat)
  check_vocab(checkpoint.config.vocab, like.vocab)
  if checkpoint.tokenizer is None:
    raise ValueError(
      f"Experiment.teacher {directory} has no tokenizer; save one beside the weights"
    )
  mine, its = map(audit.tokens_digest, (tokenizer, checkpoint.tokenizer))
  if mine != its:
    raise ValueError(
      f"Experiment.teacher {directory} is of another tokenizer than the start's: its "
      "probabilities would be of other tokens; give one of the start's tokenizer"
    )
  return Teacher(transformer.model(checkpoint.config), {"lm": checkpoint.params["lm"]})
