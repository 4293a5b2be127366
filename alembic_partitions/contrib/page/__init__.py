"""A page that shows how all tables stand: HTML as a string, from one look. Needs Jinja2 alone.

It asks for nothing: no script, no font, no image of others, so :data:`CSP` forbids all that.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from alembic_partitions.catalog import Run
from alembic_partitions.health import WARN_DAYS
from alembic_partitions.maintenance import View
from alembic_partitions.standing import health_of_view, judge
from alembic_partitions.words import printable, utc

from . import past, telling

__all__ = ["CSP", "render"]

_CSS = files(__package__).joinpath("page.css").read_text("utf-8").strip()
_HASH = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()

#: What to send as Content-Security-Policy beside the page: nothing is loaded, its own style alone holds.
CSP = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def render(
    view: View,
    *,
    runs: Sequence[Run] | None = None,
    warn_days: float = WARN_DAYS,
    request_id: str | None = None,
    refresh_seconds: int | None = None,
) -> str:
    """Return the page as a whole HTML document.

    :param view: what was looked at, with sizes.
    :param runs: past runs and alerts, the newest first; without them, the last one of each kind, as the look
        has them.
    :param warn_days: a runway in days that is worth a warning if it is shorter.
    :param request_id: shown at the foot.
    :param refresh_seconds: let the browser load it again so often.
    """
    now, found = view.now, view.runs if runs is None else runs
    rows = judge([("", view)], warn_days)
    health = health_of_view(view, rows=rows)
    return _template().render(
        css=Markup(_CSS),  # our own file
        badge=telling.overall(health),
        headline=telling.headline(health),
        counts=telling.counts(rows),
        checked=utc(now) if now is not None else "",
        view=view,
        error=health.error,
        tables=telling.tables(rows, now) if now is not None else [],
        runs_known=found is not None,
        runs=past.runs(found or (), now) if now is not None else [],
        alerts=past.alerts(found or (), now) if now is not None else [],
        request_id=request_id,
        refresh_seconds=refresh_seconds,
    )


def _breakable(name: str) -> Markup:
    """Let a long name break after a dot or an underscore; what is copied stays the name."""
    return Markup(re.sub(r"(?<=[._])", "<wbr>", str(escape(name))))  # escaped


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Names and errors come from a database: nothing in them may turn the text around or break it.
    environment.filters["shown"] = printable
    environment.filters["breakable"] = _breakable
    environment.filters["percent"] = lambda value: f"{value:.2f}".rstrip("0").rstrip(".") + "%"
    return environment.from_string(files(__package__).joinpath("page.html").read_text("utf-8"))
