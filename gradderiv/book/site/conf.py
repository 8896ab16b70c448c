"""The settings of Sphinx."""

from gradderiv._version import __version__

project = "gradderiv"
copyright = "the gradderiv authors"
version = __version__
release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "gradderiv.book.site.sphinx"]
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_update_mathjax = False
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "The gradient of attention"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
exclude_patterns = ["notebooks"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
python_use_unqualified_type_names = True
add_module_names = False
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # an exercise may follow a title
highlight_language = "none"  # a block in a docstring is a formula
html_show_search_summary = False  # it would fetch the pages, which a browser refuses to a file
