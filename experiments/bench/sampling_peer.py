"""transformers' `generate` on what `sampling.py` wrote; needs torch, and no JAX.

Command: started by sampling.py, in a process of its own:
  python sampling_peer.py DIRECTORY REPEATS
Prints one line of JSON: for each task the most tokens per CPU second over the
repeats, and the texts of its first batch.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(directory: Path, repeats: int) -> None:
  """Times every task."""
  import numpy as np
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  torch.set_num_threads(1)
  if sys.platform == "linux":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  settings = json.loads((directory / "tasks.json").read_text())
  prompts = torch.from_numpy(np.load(directory / "prompts.npy").astype(np.int64))
  model = transformers.AutoModelForCausalLM.from_pretrained(directory / "model").eval()
  results = {
    "versions": f"torch {torch.__version__}, transformers {transformers.__version__}"
  }
  for name, task in settings["tasks"].items():
    common = dict(
      max_new_tokens=settings["max_completion_tokens"],
      pad_token_id=settings["vocab"] - 1,
      eos_token_id=task["stop_ids"] or None,
      do_sample=not task["greedy"],
    )
    if not task["greedy"]:
      common |= dict(temperature=1.0, top_k=0, top_p=1.0)
    rows = prompts[: task["prompts"]]
    best = 0.0
    for repeat in range(repeats):
      torch.manual_seed(repeat)
      start, drawn = time.process_time(), []
      with torch.inference_mode():
        for batch in rows.split(settings["batch"]):
          text = model.generate(batch, attention_mask=torch.ones_like(batch), **common)
          drawn.append(text[:, batch.shape[1] :].numpy())
      seconds = time.process_time() - start
      tokens = sum(_tokens(text, task["stop_ids"]) for text in drawn)
      best = max(best, tokens / seconds)
    results[name] = {"rate": best, "text": drawn[0].tolist()}
  print(json.dumps(results))


def _tokens(drawn, stop_ids: list[int]) -> int:
  """Tokens up to the first stop token of each row, it included."""
  import numpy as np

  stops = np.isin(drawn, stop_ids)
  return int(np.where(stops.any(1), stops.argmax(1) + 1, drawn.shape[1]).sum())


if __name__ == "__main__":
  main(Path(sys.argv[1]), int(sys.argv[2]))
