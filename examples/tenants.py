"""Many tenants: an explicit directory says which shard holds the large ones, all others are hashed.

    python examples/tenants.py

Every table is sharded by the tenant, so all that belongs to one tenant is on one shard: its joins and foreign keys
work as in one file, and no statement about a tenant touches another shard.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from shardlite import DirectoryStrategy, HashStrategy, ShardManager

SCHEMA = """
CREATE TABLE members (
    tenant TEXT NOT NULL,
    id INTEGER NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID;
CREATE TABLE documents (
    tenant TEXT NOT NULL,
    id INTEGER NOT NULL,
    owner INTEGER NOT NULL,
    title TEXT NOT NULL,
    PRIMARY KEY (tenant, id),
    FOREIGN KEY (tenant, owner) REFERENCES members (tenant, id) ON DELETE CASCADE
) WITHOUT ROWID;
"""
LISTING = """SELECT m.name, count(*) AS documents
FROM members m JOIN documents d ON d.tenant = m.tenant AND d.owner = m.id
WHERE m.tenant = ? GROUP BY m.name ORDER BY m.name"""


class Tenant:
    """What one tenant may see: every call carries the tenant, so none can be forgotten."""

    def __init__(self, manager: ShardManager, name: str) -> None:
        self.manager = manager
        self.name = name

    def insert(self, table: str, row: Mapping[str, Any]) -> None:
        """Insert a row of this tenant."""
        self.manager.insert(table, row, key=self.name)

    def select(self, table: str, where: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return rows of this tenant."""
        return self.manager.select(table, where, key=self.name)

    def listing(self) -> list[dict[str, Any]]:
        """Return how many documents each member has: any SQL runs, since the tenant is pinned."""
        return self.manager.execute(LISTING, (self.name,), key=self.name).dicts()

    def leave(self) -> int:
        """Delete all that the tenant has and return how many members left; documents go with their owners."""
        return self.manager.delete("members", key=self.name)


def main() -> None:
    """Run in a temporary directory."""
    strategy = DirectoryStrategy({"acme": 0, "globex": 1}, default=HashStrategy())
    with tempfile.TemporaryDirectory() as directory:
        with ShardManager(num_shards=4, db_dir=directory, strategy=strategy) as manager:
            manager.apply_schema(SCHEMA)
            for name, size in (("acme", 300), ("globex", 200), ("initech", 3), ("hooli", 5)):
                tenant = Tenant(manager, name)
                tenant.insert("members", {"id": 1, "name": "Ann"})
                tenant.insert("members", {"id": 2, "name": "Bob"})
                rows = [{"tenant": name, "id": n, "owner": 1 + n % 2, "title": f"Plan {n}"} for n in range(size)]
                manager.insert_many("documents", rows)
                print(f"{name:8} on shard {manager.shard_for('documents', name)}: {tenant.listing()}")
            acme = Tenant(manager, "acme")
            assert len(acme.select("documents", {"title": ("LIKE", "Plan 1%")})) == 111
            assert acme.leave() == 2
            assert acme.select("documents") == []
            assert manager.count("documents") == 208
        # The directory is stored with the data: it needn't be told again.
        with ShardManager(db_dir=directory) as manager:
            assert manager.shard_for("documents", "globex") == 1
            print(f"after acme left: {manager.count('documents')} documents; {manager.strategy!r}")


if __name__ == "__main__":
    main()
