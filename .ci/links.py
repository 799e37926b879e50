"""Fails when a document names what is not there: python3 links.py BOOK DOCUMENT.md...

Checked are the links of the built book and of each document, with their anchors, and each path of the repository that
stands as code, such as `tests/it/main.rs`. Addresses of other hosts are not asked.
"""

import pathlib
import re
import sys
from html.parser import HTMLParser

FOLDERS = ("benches", "docs", "examples", "fuzz", "openapi", "src", "tests", ".ci")


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        target = attributes.get("href") if tag == "a" else attributes.get("src")
        if target:
            self.links.append(target)


def is_elsewhere(link):
    return re.match(r"[a-z]+:", link) is not None


def missing(source, link, pages):
    """What is wrong with a link that stands in the file `source`, if anything is."""
    name, _, anchor = link.partition("#")
    target = (source.parent / name).resolve() if name else source.resolve()
    if not target.exists():
        return "no such file"
    # A page of the book is read as built, since only there its headings have anchors.
    page = pages.get(target)
    if anchor and page is not None and anchor not in page.anchors:
        return "no such heading"
    return None


def main():
    book, documents = pathlib.Path(sys.argv[1]), [pathlib.Path(name) for name in sys.argv[2:]]
    # print.html is all pages in one.
    built = {path.resolve(): Page(path) for path in book.glob("*.html") if path.name not in ("print.html", "404.html")}
    sources = sorted(pathlib.Path("docs/src").glob("*.md"))
    as_source = {path.resolve(): built[(book / path.name).resolve().with_suffix(".html")]
                 for path in sources if path.name != "SUMMARY.md"}

    links = [(path, link, built) for path, page in built.items() for link in page.links]
    for document in documents:
        links += [(document, link, as_source) for link in re.findall(r"\]\(([^) ]+)\)", document.read_text())]
    links = [link for link in links if not is_elsewhere(link[1])]
    failures = [f"{source.name}: {link}: {why}" for source, link, pages in links if (why := missing(source, link, pages))]

    paths = [(document, path) for document in documents + sources
             for path in re.findall(r"`((?:%s)/[\w./-]*)`" % "|".join(map(re.escape, FOLDERS)), document.read_text())]
    failures += [f"{document}: `{path}`: no such file" for document, path in paths if not pathlib.Path(path).exists()]

    print(*failures, f"{len(links)} links and {len(paths)} paths, {len(failures)} broken", sep="\n")
    sys.exit(bool(failures))


main()
