"""`python -m xpo_jax`: the command line."""

import sys

from xpo_jax.cli import main

if __name__ == "__main__":
  sys.exit(main())
