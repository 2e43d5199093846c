"""Makes the project's description on PyPI from README.md: PyPI has no files that a relative link could reach."""

import re
from pathlib import Path

from setuptools import setup

TREE = Path(__file__).parent
REPOSITORY = "twisted-signaling/twisted-signaling"
CODE_BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
# The target of a Markdown link or picture, or of an HTML attribute, that has no scheme.
RELATIVE = re.compile(r'(?<=\]\()(?![a-z]+:)[^)\s]+|(?<=(?:src|ref|set)=")(?![a-z]+:)[^"\s]+')


def absolute_links(text: str, version: str) -> str:
    """Make the relative links of a Markdown text absolute, to the files as release ``version`` has them."""

    def absolute(link: re.Match[str]) -> str:
        target = link[0]
        if target.startswith("#"):
            target = f"README.md{target}"
        if target.endswith((".png", ".svg", ".gif", ".jpg")):
            return f"https://raw.githubusercontent.com/{REPOSITORY}/v{version}/{target}"
        return f"https://github.com/{REPOSITORY}/blob/v{version}/{target}"

    parts = CODE_BLOCK.split(text)
    parts[::2] = [RELATIVE.sub(absolute, part) for part in parts[::2]]
    return "".join(parts)


def version() -> str:
    """Read the version without importing the package, whose dependencies a build lacks."""
    [found] = re.findall(r'^VERSION = "(.+)"$', (TREE / "signaling" / "_version.py").read_text(), re.MULTILINE)
    return str(found)


if __name__ == "__main__":
    setup(
        long_description=absolute_links((TREE / "README.md").read_text(encoding="utf-8"), version()),
        long_description_content_type="text/markdown",
    )
