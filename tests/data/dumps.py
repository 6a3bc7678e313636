"""Builds small MediaWiki dumps."""

import bz2
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en">
  <siteinfo><sitename>Test</sitename><namespaces><namespace key="0" /><namespace key="1">Talk</namespace></namespaces>
  </siteinfo>
"""
TAIL = "</mediawiki>\n"
DUMPS = Path(__file__).parents[2] / "../shared/data/wiki"


def page(title: str, *texts: str, ns: int = 0, redirect: str | None = None, model: str = "wikitext") -> str:
    """A page with a revision for each text."""
    head = f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{ns}</ns>\n    <id>7</id>\n"
    head += f"    <redirect title={quoteattr(redirect)} />\n" if redirect else ""
    revisions = "".join(
        f"    <revision><id>{n}</id><timestamp>2024-01-02T03:04:05Z</timestamp><model>{model}</model>"
        f'<format>text/x-wiki</format><text xml:space="preserve">{escape(text)}</text><sha1>abc</sha1></revision>\n'
        for n, text in enumerate(texts, 1)
    )
    return f"{head}{revisions}  </page>\n"


def dump(*pages: str) -> bytes:
    return (HEAD + "".join(pages) + TAIL).encode()


def write_dump(path: Path, *pages: str) -> Path:
    """Write a dump, compressed if the name ends in .bz2."""
    content = dump(*pages)
    path.write_bytes(bz2.compress(content) if path.suffix == ".bz2" else content)
    return path
