"""A page as a test sees it: its elements, its words and its tables."""

from __future__ import annotations

import html.parser

VOID = {"meta", "input", "wbr"}


class HtmlPage(html.parser.HTMLParser):
    """
    Attributes:
        elements: (tag, attributes) of all.
        tables: For each the cells' texts, row by row, the head first.

    Raises:
        AssertionError: An element is closed that is not the last open one, or not at all.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self._words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    @property
    def words(self) -> str:
        """What a reader sees, without line breaks."""
        return " ".join("".join(self._words).split())

    def of(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """The attributes of the elements of a tag that have these."""
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] = " ".join(self.tables[-1][-1][-1].split())
        self._words.append(" " if tag in ("p", "li", "td", "th", "dt", "dd", "summary", "h1", "h2", "h3") else "")

    def handle_data(self, data: str) -> None:
        if {"script", "style", "title"} & set(self._open):
            return
        self._words.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
