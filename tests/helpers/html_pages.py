"""Reads a page as a browser would, and checks that it stands alone."""

import re
from html.parser import HTMLParser


class Reader(HTMLParser):
    """Collects the tags, what they refer to, and that they are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def check_alone(page):
    """Every picture is inside, nothing is fetched, and no script runs."""
    reader = read(page)
    assert reader.links
    assert all(re.match(r"(data:image/(png|jpeg);base64,|#)", link) for link in reader.links)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"https?://|url\(|@import|//", re.sub(r"base64,[^\"]*", "", page))
    assert not any(key.startswith("on") for _, attrs in reader.tags for key in attrs)
