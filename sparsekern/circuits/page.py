"""One self-contained page of a circuit: no network, and a policy that lets nothing but its own script run."""

import base64
import hashlib
import html
import json
from importlib.resources import files
from string import Template
from typing import Any

FOLDER = files(__package__) / "page"


def page(data: dict[str, Any], title: str) -> str:
    """The HTML of a circuit's :meth:`~sparsekern.circuits.Circuit.to_dict`, with ``d_head`` added.

    The data stands in the page as JSON without a "<", so no token can end the element that holds it; the script makes
    text nodes of it, never markup.
    """
    style, script = (f"\n{(FOLDER / name).read_text(encoding='utf-8')}" for name in ("page.css", "page.js"))
    allowed = f"style-src {_hash_of(style)}; script-src {_hash_of(script)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    text = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    parts = {"policy": policy, "title": html.escape(title), "style": style, "script": script, "data": text}
    return Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(parts)


def _hash_of(text: str) -> str:
    """As a content-security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
