"""Import, export and check: everything that looks at a whole database."""

from shardlite.topology.check import check_database
from shardlite.topology.delimited import import_delimited
from shardlite.topology.exporter import export_sqlite
from shardlite.topology.importer import import_sqlite, plan_import
from shardlite.topology.source import is_sqlite_file

__all__ = ["check_database", "export_sqlite", "import_delimited", "import_sqlite", "is_sqlite_file", "plan_import"]
