"""How the pages are built: `make docs` writes them to `out/docs`."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the checkout's own packages, and docs.generated

project = "ovss"
copyright = "the ovss authors"
version = release = installed_version("ovss")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docs.generated"]
html_theme = "furo"
html_title = f"ovss {release}"
html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
highlight_language = "text"  # of blocks that name none
default_role = "py:obj"  # `name` in a docstring is code, and a link where the name is documented
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 60  # one field a line, with its type and default
python_use_unqualified_type_names = True
