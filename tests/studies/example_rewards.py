"""Reward functions as a user writes them, right and wrong."""


def exact_answer(completions, answer, **others):
  """1 where the completion is the record's `answer`."""
  del others
  return [
    float(text.strip() == given)
    for text, given in zip(completions, answer, strict=True)
  ]


def answer_as_number(completions, answer):
  """The record's `answer` as a number."""
  return [float(given) for _, given in zip(completions, answer, strict=True)]


def brevity(prompts, completions):
  """Minus the number of characters."""
  del prompts
  return [-len(text) for text in completions]


def text_only(text):
  """No reward function: it takes one text."""
  return len(text)


def many(*texts):
  """No reward function: its parameters have no names."""
  return len(texts)
