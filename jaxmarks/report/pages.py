"""Pages from templates."""

import base64
from pathlib import Path

import jinja2


def page(template: str, **values) -> str:
    """The HTML page of a template here (`*.html.jinja`), filled with the values."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("jaxmarks.report", "."), autoescape=True)
    return environment.get_template(template).render(values)


def embed(path: Path) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
