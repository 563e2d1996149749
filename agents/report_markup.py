"""HTML that is safe by the way it is made: whatever is not markup already is escaped."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

_VOID = ("img", "meta")


class Markup(str):
    """HTML, as `element` makes it; any other text is not."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | bool) -> Markup:
    """An element with its content.

    Args:
        name: of the element.
        children: text, which is escaped, and markup, which is not.
        attributes: by name, with `_` for `-` and `class_` for `class`; True stands without a value, False is left out.
    """
    words = [name]
    for key, value in attributes.items():
        plain = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(plain)
        elif value is not False:
            words.append(f'{plain}="{html.escape(value)}"')
    opened = f"<{' '.join(words)}>"
    return Markup(opened if name in _VOID else f"{opened}{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """One after the other: text, which is escaped, and markup, which is not."""
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(child, quote=False) for child in children)
    )


def picture(svg: bytes, alternative: str) -> Markup:
    """A picture inside the page, with what it shows in words."""
    return element("img", src=data("image/svg+xml", svg), alt=alternative, class_="plot")


def swatch(colour: str) -> Markup:
    """A stroke of a run's colour beside its name."""
    return element("span", class_="swatch", style=f"background:{colour}", aria_hidden="true")


def definitions(pairs: Mapping[str, str]) -> Markup:
    """Names with their values, one below the other."""
    children = [joined(element("dt", title), element("dd", value)) for title, value in pairs.items()]
    return element("dl", *children, class_="facts")


def table(columns: Sequence[str], rows: Sequence[Markup], *, caption: str) -> Markup:
    """A table on a card; one that is too wide scrolls by itself, with the keyboard too."""
    head = element("thead", element("tr", *(element("th", column, scope="col") for column in columns)))
    content = element("table", element("caption", caption), head, element("tbody", *rows))
    return element("div", content, class_="card scroll", tabindex="0", role="region", aria_label=caption)


def data(kind: str, content: bytes) -> str:
    """A file inside the page, as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def with_versions(packages: Mapping[str, Any]) -> str:
    """Packages with their versions, without those that are not installed."""
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version is not None)
