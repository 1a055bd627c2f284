"""HTML pages from Jinja templates."""

import base64
from pathlib import Path

import jinja2


def page(template: str, **values) -> str:
    """Renders a template of this package (`*.html.jinja`) with the values, as an HTML page."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("jaxmarks.report", "."), autoescape=True)
    return environment.get_template(template).render(values)


def embed(path: Path) -> str:
    """Encodes a PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
