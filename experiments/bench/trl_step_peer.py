"""TRL's DPO trainer on what `trl_step.py` wrote; needs torch and TRL, and no JAX.

Command: started by trl_step.py, in a process of its own:
  python trl_step_peer.py DIRECTORY SET --steps N
Prints one line of JSON, as `trl_step.result` does.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

PAIRS, LEARNING_RATE, BETA = 8, 1e-4, 0.1


def main() -> None:
  """Trains for some steps."""
  import datasets
  import torch
  import transformers
  import trl

  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("directory", type=Path)
  parser.add_argument("set")
  parser.add_argument("--steps", type=int, required=True)
  options = parser.parse_args()
  torch.set_num_threads(1)
  transformers.logging.set_verbosity_error()
  rows = json.loads((options.directory / "rows.json").read_text())[options.set]
  seconds, losses = [], []

  class Clock(transformers.TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
      seconds.append(-time.process_time())

    def on_step_end(self, *args, **kwargs):
      seconds[-1] += time.process_time()

  model = options.directory / "model"
  with tempfile.TemporaryDirectory() as output:
    trainer = trl.DPOTrainer(
      model=transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32
      ),
      args=trl.DPOConfig(
        output_dir=output,
        beta=BETA,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=PAIRS,
        max_steps=options.steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
      ),
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=transformers.AutoTokenizer.from_pretrained(model),
      callbacks=[Clock()],
    )
    compute = trainer.compute_loss

    def recorded(*args, **kwargs):
      found = compute(*args, **kwargs)
      losses.append((found[0] if isinstance(found, tuple) else found).item())
      return found

    trainer.compute_loss = recorded
    trainer.train()
  per_pair = [s / PAIRS for s in seconds[1:]]
  mean = sum(per_pair) / len(per_pair)
  best = min(per_pair) if options.set == "fixed" else mean
  print(
    json.dumps(
      {
        "side": f"trl {trl.__version__}",
        "set": options.set,
        "s_a_pair": round(best, 4),
        "pairs_a_step": PAIRS,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "losses": losses,
      }
    )
  )


if __name__ == "__main__":
  main()
