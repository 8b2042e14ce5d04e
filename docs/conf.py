"""Sphinx: guides, notebooks, and the API reference from the docstrings.

python -m sphinx -W -b html docs docs/_build

With RUN_NOTEBOOKS=1 in the environment, as `make docs` sets it, notebooks are run and
their pages show the outputs.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import atlas  # noqa: E402
import notebook_pages  # noqa: E402
import pages  # noqa: E402

project = "xpo_jax"
copyright = "the xpo_jax authors"
extensions = ["sphinx.ext.autodoc", "docstrings", "sphinx.ext.napoleon"]
html_theme = "furo"
html_math_renderer = "native"
exclude_patterns = ["_build"]
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
nitpicky = False

pages.write(HERE / "api")
atlas.write(HERE / "api")
notebook_pages.write(HERE / "notebooks", run=os.environ.get("RUN_NOTEBOOKS") == "1")
