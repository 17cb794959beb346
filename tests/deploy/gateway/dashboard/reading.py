"""Reading the page as a browser without scripts does."""

from __future__ import annotations

import http.client
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlencode

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass
class Parsed(HTMLParser):
    """Elements with their attributes, and all text."""

    text: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def said(self) -> str:
        """All text, on one line."""
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def hidden(self) -> dict[str, str]:
        """Hidden fields of forms."""
        fields = (one for one in self.all("input") if one.get("type") == "hidden")
        return {str(one["name"]): str(one["value"]) for one in fields}


def got(
    address: str, path: str = "/", headers: dict[str, str] | None = None, form: dict[str, str] | None = None
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of one request; of a form where one is given."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    try:
        given = {**(FORM if form is not None else {}), **(headers or {})}
        body = None if form is None else urlencode(form)
        connection.request("GET" if form is None else "POST", path, body, given)
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, text, {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()
