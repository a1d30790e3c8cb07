"""Sources to import, and comparing one SQLite file with another."""

# ruff: noqa: E501 (SQL as applications write it)
from __future__ import annotations

import contextlib
from pathlib import Path

from shardlite.driver import sqlite3

NASTY = r"""
CREATE TABLE "order" ("select" INTEGER PRIMARY KEY AUTOINCREMENT, "a ""b"" c" TEXT COLLATE NOCASE, [weird x] BLOB);
CREATE INDEX early ON "order"("a ""b"" c" DESC);
CREATE TABLE users(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT UNIQUE, boss INTEGER REFERENCES users(id),
    full AS (name || '!') VIRTUAL, size INTEGER GENERATED ALWAYS AS (length(name)) STORED, price DECIMAL(10,2), anything);
CREATE TABLE "it's"(id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    note TEXT DEFAULT 'x,y(''z'')', CONSTRAINT chk CHECK (note <> 'FOREIGN KEY'), UNIQUE (user_id, note));
CREATE TABLE tags(tag TEXT COLLATE NOCASE PRIMARY KEY, n REAL) WITHOUT ROWID;
CREATE TABLE pairs(a TEXT, b INTEGER, c, PRIMARY KEY (b, a)) WITHOUT ROWID;
CREATE TABLE strict_one(k TEXT PRIMARY KEY, v ANY, r REAL, i INT) STRICT;
CREATE TABLE left_one(id INTEGER PRIMARY KEY, right_id INTEGER, FOREIGN KEY (right_id) REFERENCES right_one(id));
CREATE TABLE right_one(id INTEGER PRIMARY KEY, left_id INTEGER, CONSTRAINT fk FOREIGN KEY (left_id) REFERENCES left_one(id) ON UPDATE SET NULL);
CREATE TABLE plain(x, y);
CREATE TABLE hidden(rowid TEXT, _rowid_ TEXT, oid TEXT);
CREATE TABLE empty_one(id INTEGER PRIMARY KEY, q TEXT UNIQUE);
CREATE TABLE null_key(k INT PRIMARY KEY, v TEXT);
CREATE UNIQUE INDEX part ON users(name) WHERE price > 100;
CREATE UNIQUE INDEX expr ON users(lower(email), id);
CREATE VIRTUAL TABLE docs_fts USING fts5(body, content='docs', content_rowid='id');
CREATE TABLE docs(id INTEGER PRIMARY KEY, body TEXT);
CREATE TRIGGER docs_ai AFTER INSERT ON docs BEGIN INSERT INTO docs_fts(rowid, body) VALUES (new.id, new.body); END;
CREATE VIRTUAL TABLE own_fts USING fts5(title, tokenize = 'porter');
CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1);
CREATE VIEW v AS SELECT id, name FROM users WHERE price > 3;
CREATE VIEW "v on v" AS SELECT count(*) AS n FROM v;
CREATE TRIGGER v_ins INSTEAD OF INSERT ON v BEGIN INSERT INTO users(id, name) VALUES (new.id, new.name); END;
CREATE TRIGGER touch AFTER UPDATE OF note ON "it's" WHEN CASE WHEN new.note IS NULL THEN 1 ELSE 0 END
    BEGIN UPDATE "it's" SET note = 'none' WHERE id = NEW.id; SELECT RAISE(IGNORE) WHERE NEW.id < 0; END;
CREATE TABLE counted(id INTEGER PRIMARY KEY, n INT);
CREATE TABLE counting(id INTEGER PRIMARY KEY, other INT);
CREATE TRIGGER counts AFTER INSERT ON counting BEGIN UPDATE counted SET n = n + 1 WHERE id = NEW.other; END;
PRAGMA user_version = 42;
PRAGMA application_id = 1234567;
"""

NASTY_ROWS = r"""
INSERT INTO "order" VALUES (5, 'Ann', x'00ff'), (9, 'ANN ', NULL), (-3, CAST(x'ff4100' AS TEXT), 1.5), (70, '', '');
DELETE FROM "order" WHERE "select" = 70;
INSERT INTO users(id, name, email, boss, price, anything)
    WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 300)
    SELECT i * 7, 'user ' || i, 'e' || i || '@x', CASE WHEN i > 1 THEN (i / 2) * 7 END, i * 0.1,
    CASE i % 6 WHEN 0 THEN NULL WHEN 1 THEN i WHEN 2 THEN i * 1.0 WHEN 3 THEN CAST(i AS TEXT) WHEN 4 THEN CAST(i AS BLOB)
    ELSE CAST(x'fffe' AS TEXT) END FROM c;
INSERT INTO "it's"(id, user_id, note) SELECT 10000 - id, id, 'n' || id FROM users;
INSERT INTO "it's"(id, user_id, note) SELECT 20000 - id, id, NULL FROM users;
INSERT INTO tags WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 200) SELECT 'Tag' || i, i / 3.0 FROM c;
INSERT INTO tags VALUES (CAST(x'80ff' AS TEXT), 9e999), ('', -0.0);
INSERT INTO pairs WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 200) SELECT 'p' || i, i % 17, i FROM c;
INSERT INTO strict_one VALUES ('a', 1, 1, 1), ('b', 1.0, 2.5, 2), ('c', '1', NULL, NULL), ('d', x'31', 0.1, -9223372036854775808);
INSERT INTO left_one VALUES (1, 2), (2, NULL), (3, 99);
INSERT INTO right_one VALUES (2, 1), (5, 3);
INSERT INTO plain(rowid, x, y) VALUES (100, 1, 2), (3, NULL, NULL), (-7, 'a', 1e300), (9223372036854775807, 'max', 0);
INSERT INTO hidden VALUES ('r', 'o', 'w'), ('r', 'o', 'w');
INSERT INTO null_key VALUES (NULL, 'a'), (NULL, 'b'), (1, 'c'), ('x', 'd'), (2.5, 'e');
INSERT INTO docs VALUES (1, 'hello world'), (2, 'good bye world');
INSERT INTO own_fts VALUES ('running fast'), ('slow walk');
INSERT INTO boxes VALUES (1, 0, 1), (2, 5.5, 6.5);
INSERT INTO counted VALUES (1, 0), (2, 0);
INSERT INTO counting VALUES (1, 1), (2, 2), (3, 1);
"""


def make(path: Path, *scripts: str, encoding: str = "UTF-8") -> Path:
    """Make a SQLite file from scripts."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute(f"PRAGMA encoding = '{encoding}'")
        for script in scripts:
            conn.executescript(script)
    return path


def schema_of(path: Path) -> list[tuple[object, ...]]:
    """Everything in sqlite_schema, in its order."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        return conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid").fetchall()


def content_of(path: Path) -> dict[str, object]:
    """Every row of every table with rowid and exact types, text as bytes; and the numbers of the header."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.text_factory = bytes
        found: dict[str, object] = {}
        names = conn.execute(
            "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'shadow')"
        )
        for raw, without_rowid in names.fetchall():
            name = raw.decode()
            if name in ("sqlite_schema", "sqlite_sequence"):
                continue
            quoted = '"' + name.replace('"', '""') + '"'
            columns = [r[0].decode() for r in conn.execute("SELECT name FROM pragma_table_xinfo(?)", (name,))]
            if not without_rowid and "oid" not in columns:
                columns.insert(0, "oid")
            listed = ['"' + c.replace('"', '""') + '"' for c in columns]
            typed = ", ".join(f"typeof({c}), {c}" for c in listed)
            found[name] = sorted(map(repr, conn.execute(f"SELECT {typed} FROM {quoted}")))
        for pragma in ("user_version", "application_id", "encoding"):
            found[pragma] = conn.execute(f"PRAGMA {pragma}").fetchone()[0]
        if conn.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone():
            found["sqlite_sequence"] = sorted(conn.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
        assert conn.execute("PRAGMA integrity_check").fetchall() == [(b"ok",)]
        return found
