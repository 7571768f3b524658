"""Sphinx: `launch/docs.sh` builds docs/_build/html; a warning is an error."""

from __future__ import annotations

from kcd_jax import __version__

project = 'kcd_jax'
release = __version__
copyright = 'the kcd_jax authors, Apache-2.0'

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'kcd_jax {release}'

myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 4

autodoc_typehints = 'description'
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'show-inheritance': False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
