"""Settings of Sphinx, which makes the documentation site: `make doc`."""

from sb3_rgrl import __version__

project = "sb3-rgrl"
author = "The sb3-rgrl developers"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "sphinx_rtd_theme"
html_title = f"sb3-rgrl {__version__}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sphinx = False

# Pages are Markdown that a forge shows as well; headings can be linked to as there.
myst_heading_anchors = 3
# Tables that a script writes into a page begin with a heading of the script's own level.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
# Types stand with the parameters, and the line of a constructor with 40 of them stays readable.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
