"""Sphinx configuration: `make docs`."""

import re
from pathlib import Path

_source = (Path(__file__).parent.parent / "src" / "diff_diffusion" / "_version.py").read_text(encoding="utf-8")
_version = re.search(r'__version__\s*=\s*"([^"]+)"', _source)
assert _version is not None

project = "diff-diffusion"
author = "The diff-diffusion authors"
project_copyright = "2026, The diff-diffusion authors"
release = version = _version.group(1)
language = "en"

extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "images"]

html_theme = "furo"
html_title = f"diff-diffusion {release}"
# The pages build without a network. Only showing the formulas in a browser fetches MathJax, from Sphinx's default
# address; for a copy to read offline, point `mathjax_path` at a local one.
