"""The world of the online and the staged recipes: texts, model, start and sizes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class World:
  """Texts, model and sizes: what every recipe starts from and is judged by.

  Attributes:
    source: texts of your own in place of the embedded world's, as `Data.path`.
    prompt_words: words of such a text that make its prompt.
    texts: reviews of the embedded world.
    vocab: entries of the tokenizer trained on them.
    width: of the model.
    layers: of the model.
    longest: most tokens of a completion.
    row_length: tokens of a packed row.
    sft_steps: of supervised fine-tuning on the reviews, the start of all that follows.
    sft_rows: packed rows of such a step.
    sft_rate: its peak learning rate.
    asked: prompts of the training split that are sampled, the first so many.
    rows: packed rows of a step after SFT.
    rate: peak learning rate after SFT, of policies and reward models.
    prompts: held-out prompts that policies are judged on.
    samples: completions for each.
    seeds: each has its own samples, order and judging draws; SFT is shared.
  """

  source: str | None = None
  prompt_words: int = 4
  texts: int = 12_000
  vocab: int = 1024
  width: int = 64
  layers: int = 2
  longest: int = 16
  row_length: int = 96
  sft_steps: int = 400
  sft_rows: int = 10
  sft_rate: float = 3e-3
  asked: int = 800
  rows: int = 4
  rate: float = 7e-4
  prompts: int = 128
  samples: int = 4
  seeds: tuple[int, ...] = (0, 1, 2)

  def __post_init__(self):
    if not self.seeds or len(set(self.seeds)) < len(self.seeds):
      raise ValueError(
        f"World.seeds is {self.seeds}; one seed at least, and none of them twice"
      )

  def missing_eos(self, penalty: float) -> float | None:
    """What a completion cut at `longest` loses, as `Feedback.missing_eos`.

    The embedded world's reviews are shorter. Texts of one's own may not be: there it
    loses nothing, or ending early would pay more than what is rewarded.
    """
    return penalty if self.source is None else None
