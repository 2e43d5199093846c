"""The documentation site: ``make docs`` builds it from the pages of this folder.

The pages are written for GitHub too, so that everything which only the site can show is added here: the navigation,
which follows from the lists of index.md, and the API reference, which takes the place of what stands between the lines
``<!-- reference python signaling.client -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
from enum import EnumType
from importlib import import_module
from inspect import isclass
from pathlib import Path
from shutil import copyfile, copytree
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args

from docutils import nodes
from pygments.lexers.jsx import TsxLexer
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from zope.interface import Interface

from signaling._version import VERSION

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

DOCS = Path(__file__).parent
TREE = DOCS.parent
REPOSITORY = "https://github.com/twisted-signaling/twisted-signaling"
MERMAID = DOCS / "npm" / "node_modules" / "mermaid" / "dist"
TYPEDOC = TREE / "build" / "typedoc"
# The declarations of the JavaScript client, as typedoc names them, and the pages that show them.
DECLARATIONS = {"signaling": "signaling/browser/client/signaling.md", "react": "npm/src/react.md"}
DECLARATION_PAGES = {"signaling": "api-javascript.md", "react": "api-react.md"}
# Of a declaration: too many for headings.
PARTS = (
    "Extended by",
    "Extends",
    "Parameters",
    "Properties",
    "Returns",
    "Throws",
    "Type Parameters",
    "Union Members",
    "Type Literal",
)
REFERENCE = re.compile(r"^<!-- reference (\w+) ([\w. ]+) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
# Of classes whose other members are for the server's own modules.
PUBLIC_MEMBERS = {
    "signaling.Grant": "covers",
    "signaling.IceServers": "",
    "signaling.IceSource": "age_seconds",
    "signaling.Limits": "",
    "signaling.Options": "parseOptions",
    "signaling.SignalingFactory": "accept_on, change, change_limits, close_topic, kick, notify",
    "signaling.SignalingResource": "",
    "signaling.SignalingService": "addresses, startService, stopService",
    "signaling.TopicRules": "",
    "signaling.Turn": "",
    "signaling.client.Backoff": "",
    "signaling.client.mesh.Mesh": "peers, broadcast",
    "signaling.client.twisted.SignalingClient": "deliver, features, ice_servers, metadata, peers, self_id, send, "
    "startService, stopService, update_metadata, when_joined",
}
# Classes that applications do not call.
MADE_ELSEWHERE = {"signaling.client.Signaling", "signaling.client.mesh.MeshPeer"}
LOG = logging.getLogger(__name__)

project = "twisted-signaling"
author = "the twisted-signaling maintainers"
copyright = author  # noqa: A001 - Sphinx's name
release = version = VERSION

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_sitemap",
    "sphinxcontrib.mermaid",
    "sphinxcontrib.zopeext.autointerface",
    "sphinxext.opengraph",
    "notfound.extension",
]
exclude_patterns = ["npm"]
nitpicky = True
# Other types in signatures have no page here: those of other packages, and those that applications do not use.
nitpick_ignore_regex = [(r"py:.*", r"(?!signaling\.(client\.)?\w+$).*"), (r"py:.*", r"signaling\.client\.\w+\.\w+")]

html_theme = "furo"
html_title = project
html_logo = html_favicon = "../signaling/browser/demo/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_baseurl = "https://twisted-signaling.github.io/twisted-signaling/"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": f"{REPOSITORY}/",
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": ["view", "edit"],
}

myst_heading_anchors = 6
myst_fence_as_directive = ["mermaid"]

copybutton_exclude = ".linenos, .gp, .go"  # Prompts, and the output of commands.

# Without a script of another host.
mermaid_use_local = "mermaid/mermaid.esm.min.mjs"
mermaid_fullscreen = False

notfound_urls_prefix = "/twisted-signaling/"
notfound_context = {
    "title": "Page not found",
    "body": "<h1>Page not found</h1><p>This address has no page. Try the search, or the list of pages.</p>",
}
sitemap_excludes = ["404.html", "genindex.html", "py-modindex.html", "search.html"]
sitemap_url_scheme = "{link}"
sitemap_show_lastmod = False
ogp_site_url = html_baseurl
ogp_social_cards = {"enable": False}

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

linkcheck_ignore = [
    rf"{REPOSITORY}/.*",
    r"https://www\.npmjs\.com/.*",
    rf"{html_baseurl}.*",
    r"https?://(localhost|127\.0\.0\.1|[\w.-]*example\.)",
]


def navigation(text: str) -> str:
    """Return a hidden table of contents for each second-level heading of ``text``, with the pages listed below it."""
    trees = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        caption = section.partition("\n")[0]
        pages = re.findall(r"^[-*] \[([^\]]+)\]\(([\w-]+)\.md\)", section, re.MULTILINE)
        entries = "".join(f"{title} <{page}>\n" for title, page in pages)
        trees.append(f"\n```{{toctree}}\n:caption: {caption}\n:hidden:\n\n{entries}```\n")
    return "".join(trees)


def python_reference(module: str, *first: str) -> str:
    """Return directives that show every public name of a module, some of them first."""
    exported = {name: getattr(import_module(module), name) for name in import_module(module).__all__}
    lines = [f".. py:module:: {module}", "   :no-index-entry:", ""]
    for name in (*(name for name in first if name in exported), *sorted(set(exported) - set(first), key=str.lower)):
        lines += [*python_directive(f"{module}.{name}", exported[name]), ""]
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def python_directive(name: str, value: Any) -> list[str]:
    """Return the lines of the directive that shows one public name."""
    short = name.rpartition(".")[2]
    if isinstance(value, UnionType):
        members = ", ".join(f":py:class:`{member.__name__}`" for member in get_args(value))
        return [f".. py:type:: {short}", "", f"   One of {members}."]
    if isinstance(value, type(Interface)):
        kind = "interface"
    elif isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
    elif callable(value):
        kind = "function"
    else:
        return [f".. py:data:: {short}"]
    shown = PUBLIC_MEMBERS.get(name)
    options = [] if shown == "" or kind == "function" else [f"   :members: {shown or ''}".rstrip()]
    return [f".. auto{kind}:: {name}{'()' if name in MADE_ELSEWHERE else ''}", *options]


def javascript_reference(name: str) -> str:
    """Return what typedoc made of the declarations of a module, with headings for names only."""
    text = (TYPEDOC / DECLARATIONS[name]).read_text().partition("\n")[2]
    text = re.sub(r"\]\([\w./-]*?(\w+)\.md#", lambda found: f"]({DECLARATION_PAGES[found[1]]}#", text)
    text = re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", text)
    text = re.sub(r"^#+ (?:Overrides\n\n.*|Extends\n\n- `EventTarget`)\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\*{3}$|^#+ (?:Constructors|Methods|Constructor|Call Signature)$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^#+ Returns\n\n`void`\n", "", text, flags=re.MULTILINE)
    text = re.sub(rf"^#+ ({'|'.join(PARTS)})$", r"**\1**", text, flags=re.MULTILINE)
    return re.sub(r"^#{4,} ", "### ", text, flags=re.MULTILINE)


def link_documents(*event: Any) -> None:
    """Make links of the pages that a docstring names."""
    lines: list[str] = event[-1]
    lines[:] = [re.sub(r"docs/([\w-]+)\.md", r":doc:`\1`", line) for line in lines]


def write_signature(*event: Any) -> tuple[str | None, str | None]:
    """Replace what is no Python in a signature: Sphinx would show all of it as it is, with full names."""
    parts = [part and part.replace("<factory>", "...") for part in event[-2:]]
    arguments, returned = [part and re.sub(r"<InterfaceClass ([\w.]+)>", r"~\1", part) for part in parts]
    if "<" in f"{arguments}{returned}":
        LOG.warning("%s has a signature that is no Python: %s", event[2], arguments)
    return arguments, returned


def add_what_the_site_shows(app: Sphinx, docname: str, content: list[str]) -> None:
    """Expand the navigation and the references of a page."""

    def reference(found: re.Match[str]) -> str:
        module, *first = found[2].split()
        if found[1] == "javascript":
            return javascript_reference(module)
        # In the order of the page's tables.
        return python_reference(module, *first, *re.findall(r"^\| `(\w+)` \|", content[0], re.MULTILINE))

    text = REFERENCE.sub(reference, content[0])
    if docname == app.config.root_doc:
        text += navigation(text)
    content[0] = text


class Links(SphinxTransform):
    """Makes a link that leaves this folder a link to the repository, and shows titles instead of file names."""

    # Before Sphinx copies the files that are linked to, and resolves references.
    default_priority = 5

    def apply(self, **kwargs: Any) -> None:
        """Replace the links of one page."""
        for kind in (addnodes.pending_xref, addnodes.download_reference):
            for node in list(self.document.findall(kind)):
                if node.get("reftype") == "myst":
                    self._replace(node)

    def _replace(self, node: Any) -> None:
        path, _, anchor = str(node["reftarget"]).partition("#")
        if node.get("refdomain") == "doc":
            # MyST has taken the suffix off.
            path, anchor = f"{path}.md", node.get("reftargetid")
        file = (DOCS / path).resolve()
        if not file.is_relative_to(TREE) or not file.exists():
            return  # Sphinx warns.
        if file.is_relative_to(DOCS):
            if node.astext() == file.name:
                node["refexplicit"] = False
                node.children = [nodes.inline()]
            return
        kind = "tree" if file.is_dir() else "blob"
        uri = f"{REPOSITORY}/{kind}/main/{file.relative_to(TREE)}" + (f"#{anchor}" if anchor else "")
        node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=False))


def check_references(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that no page describes, or that have no docstring."""
    described = env.domains.python_domain.objects
    for path in sorted((TREE / "signaling").rglob("*.py")):
        if not re.search(r"^__all__ = ", path.read_text(), re.MULTILINE):
            continue
        module = import_module(".".join(path.relative_to(TREE).with_suffix("").parts).removesuffix(".__init__"))
        for name in module.__all__:
            if f"{module.__name__}.{name}" not in described:
                LOG.warning("no page describes %s.%s", module.__name__, name)
            value = getattr(module, name)
            if callable(value) and not value.__doc__:
                LOG.warning("%s.%s has no docstring", module.__name__, name)
            if isinstance(value, EnumType):
                # Without a docstring, autodoc leaves out a member.
                for member in value.__members__:
                    if f"{module.__name__}.{name}.{member}" not in described:
                        LOG.warning("no page describes %s.%s.%s", module.__name__, name, member)


def mend_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Mend what extensions and the theme made of a page, before it is written."""
    # The script of the extension for interfaces needs jQuery. That for diagrams is on generated pages as well.
    unwanted = ("$(document)",) if doctree else ("$(document)", "mermaid")
    context["script_files"] = [
        script
        for script in context["script_files"]
        if not any(text in (getattr(script, "attributes", {}).get("body") or "") for text in unwanted)
    ]
    # A screen reader needs the level of a heading.
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace(' role="heading"', ' role="heading" aria-level="2"')
    # The keyboard scrolls what is too wide.
    context["body"] = context.get("body", "").replace("<pre>", '<pre tabindex="0">')


def add_files(app: Sphinx, error: Exception | None) -> None:
    """Copy the script for diagrams into the site, and the schemas of messages, whose ids are addresses there."""
    if error is None and app.builder.format == "html":
        for path in (MERMAID / "mermaid.esm.min.mjs", *MERMAID.glob("chunks/mermaid.esm.min/*.mjs")):
            target = app.outdir / "_static" / "mermaid" / path.relative_to(MERMAID)
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(path, target)
        copytree(TREE / "signaling" / "schemas", app.outdir / "schemas", dirs_exist_ok=True)


class Tsx(TsxLexer):
    """The lexer of Pygments, which takes generic types in TSX for errors."""

    def add_filter(self, filter_: Any, **options: Any) -> None:
        """Do not add Sphinx's filter, which raises them."""


def setup(app: Sphinx) -> None:
    """Extend Sphinx."""
    app.add_lexer("tsx", Tsx)
    app.connect("autodoc-process-docstring", link_documents)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("source-read", add_what_the_site_shows)
    app.connect("env-check-consistency", check_references)
    # After those that add them.
    app.connect("html-page-context", mend_page, priority=900)
    app.connect("build-finished", add_files)
    app.add_transform(Links)
