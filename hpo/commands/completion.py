"""The names of studies, which a shell completes beside commands and options.

A shell asks at every press of a key, so this reads one column and imports no Optuna. It makes no
ledger, and completes nothing where it can read none.
"""

from __future__ import annotations

import re
from pathlib import Path

import typer

# As in storage/names.py, which is too slow to import. Other names may hold what a shell would run.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def study_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the studies in the ledger that the command would open."""
    import sqlalchemy as sa

    from hpo.service.opening import storage_url

    try:
        url = sa.make_url(storage_url(ctx.params.get("storage")))
        on_disk = url.get_backend_name() == "sqlite"
        if on_disk and not Path(url.database or "").is_file():
            return []
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        engine = sa.create_engine(url, connect_args={} if on_disk else {"connect_timeout": 2})
        with engine.connect() as connection:
            names = [*connection.scalars(sa.text("SELECT study_name FROM studies"))]
    except (sa.exc.SQLAlchemyError, ImportError, ValueError):
        return []
    return [name for name in names if _NAME.fullmatch(name) and name.startswith(incomplete)]
