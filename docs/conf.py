"""The documentation's site: `make docs` builds it with Sphinx, warnings as errors."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import pkgutil
import re
import sys
import types
import typing
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.nodes import make_refnode

import pyro_hrssm

project = "pyro-hrssm"
author = "The pyro_hrssm authors"
version = release = pyro_hrssm.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "notebooks/*.py", "notebooks/runs", "**/.ipynb_checkpoints"]
nitpicky = True
default_role = "code"  # docstrings have single backticks

myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a notebook's committed outputs are shown; a test runs its script
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Napoleon takes what stands before a colon in a field's docstring for a type; here it is a sentence.
GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end  # type: ignore[method-assign]
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"pyro-hrssm {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # browsers show it without a script, and without the internet
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def exists(name: str, module: str | None, owner: str | None) -> bool:
    """Whether a class of the module, a module of the package, Python or another library has what a reference names."""
    named = reached(sys.modules.get(module or ""), (owner or "").split("."))
    starts = [named, *package(), builtins, typing]
    return any(reached(start, name.split(".")) is not None for start in starts) or imported(name)


@functools.cache
def package() -> list[types.ModuleType]:
    """Every module of the package."""
    names = (found.name for found in pkgutil.walk_packages(pyro_hrssm.__path__, "pyro_hrssm."))
    return [pyro_hrssm, *(importlib.import_module(name) for name in names if not name.endswith("__main__"))]


def imported(name: str) -> bool:
    """Whether there is what a full name, such as `torch.nn.Module`, names."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError):
            return reached(importlib.import_module(".".join(parts[:length])), parts[length:]) is not None
    return False


def reached(start: Any, names: list[str]) -> Any:
    """The attribute of an attribute of the start, along these names; None where there is none."""
    for name in names:
        start = getattr(start, name, None)
    return start


def resolve(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.TextElement) -> nodes.Node | None:
    """A link for a reference by a short name that one documented object has; else plain text if the name exists.

    A docstring names a class as its module does, `InputError`, and an annotation may name what has no entry in the
    reference, or another library's. A name that exists nowhere stays unresolved, which ends the build.
    """
    if node.get("refdomain") != "py":
        return None
    target, module, owner = node["reftarget"], node.get("py:module"), node.get("py:class")
    objects = env.domains.python_domain.objects
    full = [name for name in objects if name == target or name.endswith(f".{target}")]
    full = [name for name in full if not objects[name].aliased] or full
    if len(full) == 1:
        entry = objects[full[0]]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, full[0])
    return content if exists(target, module, owner) else None


ALIASES = {
    r"~numpy\.ndarray\[tuple\[~typing\.Any, \.\.\.\], ~numpy\.dtype\[(~[\w.]+)\]\]": r"~numpy.typing.NDArray[\1]",
    r"~numpy\._typing\.\w+\._Buffer \| .*?_NestedSequence\[complex \| bytes \| str\]": "~numpy.typing.ArrayLike",
}
"""What Python makes of NumPy's aliases in annotations, and the aliases."""


def aliased(
    app: Sphinx, what: str, name: str, member: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A signature with NumPy's aliases, as in its source, in place of what they stand for."""
    for pattern, alias in ALIASES.items():
        signature, returned = (text and re.sub(pattern, alias, text) for text in (signature, returned))
    return signature, returned


def skip(app: Sphinx, what: str, name: str, member: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out the fields of a named tuple that have no docstring: the signature names them."""
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def inline(self: Any, node: Any) -> None:
    """Write a formula within a line."""
    self.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def block(self: Any, node: Any) -> None:
    """Write a formula between lines."""
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect what this file adds to Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", aliased)
    app.connect("autodoc-skip-member", skip)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
