"""Which modules may import which: the rules of the architecture, checked in the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxmarks"

# package or module -> what it must not import
FORBIDDEN = {
    "ops": (
        "flax",
        "optax",
        "orbax",
        "numpy",
        "scipy",
        "skimage",
        "jaxmarks.data",
        "jaxmarks.models",
        "jaxmarks.heads",
    ),
    "data": (
        "jax",
        "flax",
        "optax",
        *(f"jaxmarks.{room}" for room in ("ops", "models", "heads", "train", "tasks", "runs", "caveats", "processes")),
    ),
    "report": ("jax", "flax", "jaxmarks.train", "jaxmarks.tasks", "jaxmarks.steps"),
    "baselines": ("jax", "flax", "jaxmarks.train", "jaxmarks.tasks"),
    "augment": ("flax", "optax", "numpy", "jaxmarks.data", "jaxmarks.models"),
    "models": ("optax", "orbax", "jaxmarks.data", "jaxmarks.train", "jaxmarks.tasks"),
    "heads": ("optax", "orbax", "jaxmarks.data", "jaxmarks.train", "jaxmarks.tasks", "jaxmarks.models"),
    "optim.py": ("orbax", "jaxmarks"),
    "checkpoint.py": ("jaxmarks", "optax"),
    "steps.py": ("orbax", "jaxmarks.heads", "jaxmarks.data", "jaxmarks.models.beetle"),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_forbidden_imports(room):
    place = PACKAGE / room
    files = [place] if place.suffix else sorted(place.rglob("*.py"))
    assert files, f"{place} is empty: mend the table"
    plain = "jaxmarks.ops.frames"  # plain Python: where a photograph lies in a frame
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if not name.startswith(plain)
        and any(name == banned or name.startswith(banned + ".") for banned in FORBIDDEN[room])
    ]
    assert not found


def test_configs_import_only_config_modules():
    for path in (ROOT / "configs").rglob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] in ("ml_collections",) or name.startswith("jaxmarks.config"), (path.name, name)


def test_no_flax_nnx():
    assert not [p for p in PACKAGE.rglob("*.py") if any("nnx" in name.split(".") for name in imports(p))]


def test_every_public_module_is_importable():
    import jaxmarks

    for name in jaxmarks.__all__:
        assert getattr(jaxmarks, name).__doc__, name
    with pytest.raises(AttributeError, match="landmark"):
        jaxmarks.landmark  # noqa: B018
