"""What a shell completes beside commands and options: the names of studies.

Asked at every press of a key, it reads one column and imports no Optuna. It makes no ledger; where
there is none that it can read, it has nothing to say.
"""

from __future__ import annotations

from pathlib import Path

import typer


def study_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The studies in the ledger that the command would open."""
    import sqlalchemy as sa

    from hpo.commands.common import storage_url

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
    return [name for name in names if name.startswith(incomplete)]
