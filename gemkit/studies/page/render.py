"""Templates to one HTML file that needs nothing else: no network, no fonts, no other files."""

from __future__ import annotations

import base64
import functools
import hashlib
from typing import Any

import jinja2
from markupsafe import Markup

from gemkit.studies.page import text


def render(template: str, **context: Any) -> str:
    """The page of a template in `templates/`.

    Its styles and its script are inlined, and its content security policy lets a browser run that script, by its
    hash, and load nothing.
    """
    return _environment().get_template(template).render(script_hash=_hash("page.js"), **context)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": text.breakable,
        "fixed": text.fixed,
        "signed": text.signed,
        "percent": text.percent,
        "si": text.si,
    }
    environment.globals |= {"source": _source}
    return environment


def _source(name: str) -> Markup:
    """A file of the templates as it is."""
    return Markup(_read(name))


def _read(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(name: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(_read(name).encode()).digest()).decode()
