"""TRL's DPO trainer on what `trl_step.py` wrote; needs torch and TRL, and no JAX.

Command: started by trl_step.py, in a process of its own:
  python trl_step_peer.py DIRECTORY SET
Prints one line of JSON, as `trl_step.measure` returns it.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path


def main() -> None:
  """Trains for some steps."""
  import datasets
  import torch
  import transformers
  import trl

  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("directory", type=Path)
  parser.add_argument("set")
  options = parser.parse_args()
  torch.set_num_threads(1)
  transformers.logging.set_verbosity_error()
  jobs = json.loads((options.directory / "jobs.json").read_text())
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
        beta=jobs["beta"],
        precompute_ref_log_probs=True,
        per_device_train_batch_size=jobs["pairs"],
        max_steps=jobs["steps"],
        learning_rate=jobs["learning_rate"],
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
      train_dataset=datasets.Dataset.from_list(jobs[options.set]),
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
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  found = {"seconds": seconds, "pairs": [jobs["pairs"]] * len(seconds)}
  print(json.dumps(found | {"losses": losses, "peak_mib": round(peak)}))


if __name__ == "__main__":
  main()
