"""The settings of the servers on a database that should be the same at each: as the one that has changed them last has them."""

from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, select

from milepost.store.schema import server_settings
from milepost.store.statements import Statement, upsert


class SettingRow(msgspec.Struct, frozen=True, gc=False):
    """A setting: its value as JSON, of the secret key a fingerprint; which server has set it, and when, microseconds since 1970."""

    name: str
    value: str
    server: str
    changed_at: int


_NEW = upsert(server_settings)
_SAVE = Statement(
    _NEW.on_conflict_do_update(
        index_elements=["name"],
        set_={name: _NEW.excluded[name] for name in SettingRow.__struct_fields__ if name != "name"},
    ),
    SettingRow.__struct_fields__,
    key=["name"],
)


def load_settings_rows(connection: Connection) -> list[SettingRow]:
    """Every setting that a server has left."""
    columns = [server_settings.c[name] for name in SettingRow.__struct_fields__]
    return [SettingRow(*values) for values in connection.execute(select(*columns))]


def save_settings_rows(connection: Connection, rows: Iterable[SettingRow]) -> None:
    """Leave settings for the servers that start later."""
    _SAVE.write(connection, [msgspec.structs.astuple(row) for row in rows])
