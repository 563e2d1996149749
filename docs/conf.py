"""Sphinx's settings: `sphinx-build -W docs build/docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generate import write_pages

from acktr import __version__

project = "ACKTR"
author = "the ACKTR authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
default_role = "literal"  # docstrings write code in single backticks
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True

html_theme = "furo"
html_title = f"ACKTR {__version__}"
html_static_path: list[str] = []
exclude_patterns = ["build"]

write_pages(Path(__file__).parent / "generated")
