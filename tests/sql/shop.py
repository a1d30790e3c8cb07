"""The schema that the golden plans are made for."""

from __future__ import annotations

from sharded import Definition

DDL = (
    "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, age INT, email TEXT)",
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users (id) ON DELETE CASCADE, "
    "amount REAL, note TEXT COLLATE NOCASE)",
    "CREATE TABLE kv (k TEXT PRIMARY KEY, v) WITHOUT ROWID",
    "CREATE TABLE tags (tag TEXT COLLATE NOCASE, n INT DEFAULT 1)",
    "CREATE TABLE items (tenant TEXT, id INT, q INT DEFAULT 1, at TEXT DEFAULT CURRENT_TIMESTAMP, "
    "PRIMARY KEY (tenant, id))",
    "CREATE TABLE audited (id INTEGER PRIMARY KEY, x INT)",
    "CREATE TABLE checked (id INTEGER PRIMARY KEY, x INT)",
    "CREATE TABLE country (code TEXT PRIMARY KEY, name TEXT)",
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value)",
    "CREATE TABLE journal (id INTEGER PRIMARY KEY, what)",
    "CREATE TABLE badges (id INTEGER PRIMARY KEY, label TEXT UNIQUE, n INT)",
    "CREATE TABLE parents (id INTEGER PRIMARY KEY, n INT)",
    "CREATE TABLE children (id INTEGER PRIMARY KEY, pid INTEGER REFERENCES parents (id) ON UPDATE CASCADE "
    "ON DELETE SET NULL, x INT)",
    "CREATE TABLE grips (id INTEGER PRIMARY KEY, pid INTEGER REFERENCES parents (id) ON DELETE RESTRICT "
    "ON UPDATE CASCADE)",
    "CREATE VIEW adults AS SELECT id, name FROM users WHERE age >= 18",
    "CREATE VIEW elders AS SELECT * FROM adults WHERE id IN (SELECT id FROM users WHERE age > 40)",
    "CREATE VIEW spending (note, spent) AS SELECT note, sum(amount) FROM orders GROUP BY note",
    "CREATE VIEW options AS SELECT name, value FROM settings",
    "CREATE TABLE trail (audited INTEGER, what TEXT, x INT, PRIMARY KEY (audited, what)) WITHOUT ROWID",
    "CREATE TRIGGER audit AFTER INSERT ON audited BEGIN INSERT INTO trail VALUES (new.id, 'new', new.x); END",
    "CREATE TRIGGER forget AFTER DELETE ON audited BEGIN DELETE FROM trail WHERE audited = old.id; END",
    "CREATE TRIGGER rename INSTEAD OF UPDATE ON adults BEGIN UPDATE users SET name = new.name WHERE id = old.id; END",
    "CREATE TRIGGER noted INSTEAD OF INSERT ON options BEGIN INSERT INTO settings VALUES (new.name, new.value); END",
    "CREATE TRIGGER positive BEFORE INSERT ON checked WHEN new.x < 0 BEGIN SELECT raise(ABORT, 'negative'); END",
)

SHOP = Definition(
    DDL,
    keys={
        "users": ("id",),
        "orders": ("user_id",),
        "kv": ("k",),
        "tags": ("tag",),
        "items": ("tenant", "id"),
        "audited": ("id",),
        "checked": ("id",),
        "trail": ("audited",),
        "parents": ("id",),
        "children": ("pid",),
        "grips": ("pid",),
    },
    references=frozenset({"country"}),
    groups={"users": "person", "orders": "person", "audited": "audit", "trail": "audit"}
    | dict.fromkeys(("parents", "children", "grips"), "family"),
    rows=(
        (
            "INSERT INTO users VALUES (?, ?, ?, ?)",
            [(i * 37, f"user{i}", i % 7 * 10, None if i % 3 else f"u{i}@x") for i in range(1, 25)],
        ),
        (
            "INSERT INTO orders VALUES (?, ?, ?, ?)",
            [(i, (i * 5 % 23 + 1) * 37 if i % 9 else None, i / 4, ("A", "b", "a ")[i % 3]) for i in range(1, 60)],
        ),
        ("INSERT INTO kv VALUES (?, ?)", [(str(i), i) for i in range(10)] + [("a", b"x"), ("A", None), ("5.0", 2.5)]),
        ("INSERT INTO tags VALUES (?, ?)", [("red", 1), ("RED", 2), ("blue", 3), (None, 4), ("5", 5), ("green", 6)]),
        ("INSERT INTO items VALUES (?, ?, ?, 'then')", [(t, i, i * 2) for t in ("x", "y", "z") for i in range(5)]),
        ("INSERT INTO audited VALUES (?, ?)", [(i, i * i) for i in range(1, 9)]),
        ("INSERT INTO badges VALUES (?, ?, ?)", [(1, "a", 1), (2, "b", 2), (3, None, 3)]),
        ("INSERT INTO parents VALUES (?, ?)", [(i, i * i) for i in range(1, 7)]),
        ("INSERT INTO children VALUES (?, ?, ?)", [(i, i % 5 + 1, i) for i in range(1, 11)]),
        ("INSERT INTO grips VALUES (?, ?)", [(1, 4), (2, 6)]),
        ("INSERT INTO country VALUES (?, ?)", [("de", "Germany"), ("fr", "France"), ("us", "user1")]),
        ("INSERT INTO settings VALUES (?, ?)", [("a", 1), ("b", "two")]),
    ),
)
