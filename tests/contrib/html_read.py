"""Read a page as a browser would, with the standard library: elements, their classes and their text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}


@dataclass
class Element:
    """An element; text and elements lie in it in their order."""

    tag: str
    attrs: dict[str, str] = field(default_factory=dict)
    inside: list[Element | str] = field(default_factory=list)

    @property
    def classes(self) -> set[str]:
        return set(self.attrs.get("class", "").split())

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        return " ".join(self._text().split())

    def _text(self) -> str:
        told = "".join(part if isinstance(part, str) else part._text() for part in self.inside)
        return told if self.tag == "wbr" else f" {told} "

    def __iter__(self) -> Iterator[Element]:
        """Yield it and everything in it."""
        yield self
        for part in self.inside:
            if isinstance(part, Element):
                yield from part

    def all(self, tag: str, *classes: str) -> list[Element]:
        return [one for one in self if one.tag == tag and one.classes >= set(classes)]

    def one(self, tag: str, *classes: str) -> Element:
        (found,) = self.all(tag, *classes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("document")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


def read(page: str) -> Element:
    """Return the document; every element in it is closed where it should be."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    (document,) = reader.open
    return document
