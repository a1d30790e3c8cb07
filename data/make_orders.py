"""Write ``orders.db``, the sample database: the order system of a small shop, about 50,000 rows.

    python data/make_orders.py [FILE]           # the default is orders.db beside this script

The content is fixed by a seed: every run, on every machine and Python version, gives the same rows in the same
order (`dump` gives them as text). Only ``Random.random()`` is used: the one method whose results Python keeps from
version to version. The bytes of the file may differ, because SQLite writes its own version into the header.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

T = TypeVar("T")

SEED = 20_240_229
CUSTOMERS = 3_200
ORDERS = 9_000
PRODUCTS = 420
AUDIT_ROWS = 300
FIRST_DAY = dt.datetime(2023, 1, 2, 6, 0, 0)
MINUTES = 60 * 24 * 700

SCHEMA = """
CREATE TABLE countries (
    code TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    region TEXT NOT NULL,
    vat_percent REAL NOT NULL CHECK (vat_percent >= 0)
) WITHOUT ROWID;

CREATE TABLE categories (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    parent_id INTEGER REFERENCES categories (id)
);

CREATE TABLE products (
    id INTEGER PRIMARY KEY,
    sku TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    category_id INTEGER NOT NULL REFERENCES categories (id),
    price_cents INTEGER NOT NULL CHECK (price_cents > 0),
    weight_kg REAL,
    picture BLOB
) STRICT;

CREATE TABLE customers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    email TEXT NOT NULL COLLATE NOCASE UNIQUE,
    country TEXT NOT NULL REFERENCES countries (code),
    joined_on TEXT NOT NULL,
    discount_percent REAL
);

CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    placed_at TEXT NOT NULL,
    placed_year INTEGER GENERATED ALWAYS AS (CAST(substr(placed_at, 1, 4) AS INTEGER)) STORED,
    status TEXT NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'paid', 'shipped', 'cancelled')),
    changed_at TEXT NOT NULL,
    UNIQUE (customer_id, id)
);

CREATE TABLE order_items (
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    order_id INTEGER NOT NULL,
    line INTEGER NOT NULL,
    product_id INTEGER NOT NULL REFERENCES products (id),
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    unit_price_cents INTEGER NOT NULL,
    total_cents INTEGER GENERATED ALWAYS AS (quantity * unit_price_cents) VIRTUAL,
    PRIMARY KEY (customer_id, order_id, line),
    FOREIGN KEY (customer_id, order_id) REFERENCES orders (customer_id, id) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE payments (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    order_id INTEGER NOT NULL,
    method TEXT NOT NULL,
    amount_cents INTEGER NOT NULL,
    paid_at TEXT NOT NULL,
    FOREIGN KEY (customer_id, order_id) REFERENCES orders (customer_id, id) ON DELETE CASCADE
) STRICT;

CREATE TABLE order_events (
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    order_id INTEGER NOT NULL,
    status TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (customer_id, order_id, status),
    FOREIGN KEY (customer_id, order_id) REFERENCES orders (customer_id, id) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE notes (
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customers (id),
    body TEXT,
    attachment BLOB
);

CREATE TABLE audit_log (
    at TEXT NOT NULL,
    actor TEXT,
    action TEXT NOT NULL
);

CREATE INDEX customers_by_country ON customers (country);
CREATE INDEX orders_by_day ON orders (placed_at);
CREATE INDEX orders_waiting ON orders (customer_id) WHERE status IN ('open', 'paid');
CREATE INDEX payments_by_order ON payments (customer_id, order_id);
CREATE INDEX notes_by_customer ON notes (customer_id);

CREATE VIEW order_totals AS
SELECT o.id AS order_id, o.customer_id, o.placed_at, o.status,
       count(*) AS lines, sum(i.total_cents) AS total_cents
FROM orders o
JOIN order_items i ON i.customer_id = o.customer_id AND i.order_id = o.id
GROUP BY o.customer_id, o.id;

CREATE TRIGGER orders_status AFTER UPDATE OF status ON orders WHEN new.status <> old.status
BEGIN
    INSERT OR REPLACE INTO order_events (customer_id, order_id, status, at)
    VALUES (new.customer_id, new.id, new.status, new.changed_at);
END;
"""

COUNTRIES = (
    ("AR", "Argentina", "Americas", 21.0),
    ("AT", "Austria", "Europe", 20.0),
    ("AU", "Australia", "Oceania", 10.0),
    ("BE", "Belgium", "Europe", 21.0),
    ("BR", "Brazil", "Americas", 17.0),
    ("CA", "Canada", "Americas", 5.0),
    ("CH", "Switzerland", "Europe", 8.1),
    ("CI", "Côte d'Ivoire", "Africa", 18.0),
    ("CL", "Chile", "Americas", 19.0),
    ("CZ", "Czechia", "Europe", 21.0),
    ("DE", "Germany", "Europe", 19.0),
    ("DK", "Denmark", "Europe", 25.0),
    ("ES", "Spain", "Europe", 21.0),
    ("FI", "Finland", "Europe", 25.5),
    ("FR", "France", "Europe", 20.0),
    ("GB", "United Kingdom", "Europe", 20.0),
    ("GR", "Greece", "Europe", 24.0),
    ("HK", "Hong Kong", "Asia", 0.0),
    ("IE", "Ireland", "Europe", 23.0),
    ("IN", "India", "Asia", 18.0),
    ("IT", "Italy", "Europe", 22.0),
    ("JP", "Japan", "Asia", 10.0),
    ("KE", "Kenya", "Africa", 16.0),
    ("KR", "South Korea", "Asia", 10.0),
    ("MX", "Mexico", "Americas", 16.0),
    ("NL", "Netherlands", "Europe", 21.0),
    ("NO", "Norway", "Europe", 25.0),
    ("NZ", "New Zealand", "Oceania", 15.0),
    ("PL", "Poland", "Europe", 23.0),
    ("PT", "Portugal", "Europe", 23.0),
    ("SE", "Sweden", "Europe", 25.0),
    ("TR", "Türkiye", "Asia", 20.0),
    ("US", "United States", "Americas", 0.0),
    ("ZA", "South Africa", "Africa", 15.0),
)

# (name, position of the parent or None); the id is the position, from 1.
CATEGORIES: tuple[tuple[str, int | None], ...] = (
    ("Kitchen", None),
    ("Garden", None),
    ("Office", None),
    ("Outdoor", None),
    ("Cookware", 1),
    ("Cutlery", 1),
    ("Tea & coffee", 1),
    ("Tools", 2),
    ("Seeds", 2),
    ("Paper", 3),
    ("Lamps", 3),
    ("Tents", 4),
    ("Cycling", 4),
)


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


FIRST_NAMES = words("""
    Ada Amélie Anders Ángel Aoife Astrid Björn Chen Chloë Dmitri Elif Emeka Fatima François Giulia
    Hana Hiroshi Ingrid Jamal João Kaito Lars Léa Lucía Mei Mohamed Niamh Nils Noor Olga Paulo
    Priya Rosa Søren Siobhán Tomás Wanjiru Yusuf Zoë Zofia
""")
LAST_NAMES = words("""
    Abe Andersson Bauer Beaulieu Brown Çelik Costa Dubois Eriksen Fernández García Haas Ito Jansen
    Johansson Kamau Kowalski Larsen Lindqvist Martin Müller Nakamura Novák Núñez O'Brien O'Connor
    Okafor Patel Pereira Rossi Sato Schröder Silva Singh Smith Świątek Takahashi Tanaka van-Dijk
    Yılmaz
""")
ADJECTIVES = words("Blue Bright Classic Compact Folding Green Heavy Light Little Oak Quiet Red Silver Steel")
NOUNS = words("""
    Bench Bottle Bowl Chair Clip Cup Desk Fork Grinder Hoe Kettle Knife Ladle Lantern Mat Mug
    Notebook Pan Pen Rake Rope Saw Shelf Spoon Stand Stool Tray Trowel Watering-can Whisk
""")
NOTES = (
    "Rings twice; leave it with the neighbour.",
    "Prefers e-mail.",
    "Asked for an invoice; sent.",
    'Says "thank you" for the quick delivery.',
    "Bitte nicht anrufen.",
    "配達は午後のみ。",
    "Two parcels\nthe second one follows.",
    "",
)
STATUSES = ("open", "paid", "shipped", "cancelled")


class Dice:
    """Draws from one seeded source, built on ``Random.random()`` alone."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def below(self, limit: int) -> int:
        return int(self._random() * limit)

    def skewed(self, limit: int) -> int:
        """Draw below ``limit`` with small numbers far more often, as a few customers order most."""
        return int(self._random() ** 2 * limit)

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def blob(self, length: int) -> bytes:
        return bytes(self.below(256) for _ in range(length))


def stamp(minute: int) -> str:
    """Return the time that many minutes after the shop opened, as SQLite writes it."""
    return (FIRST_DAY + dt.timedelta(minutes=minute)).isoformat(" ")


def email_of(name: str, number: int, dice: Dice) -> str:
    """Return an address that is unique by its number; one in eight is written in capitals."""
    plain = "".join(c if c.isascii() and c.isalnum() else "." for c in name).lower()
    address = f"{plain}.{number}@example.com"
    return address.upper() if dice.chance(0.125) else address


def fill_references(conn: sqlite3.Connection, dice: Dice) -> list[int]:
    """Insert countries, categories and products; return the products' prices in cents, by id - 1."""
    conn.executemany("INSERT INTO countries VALUES (?, ?, ?, ?)", COUNTRIES)
    numbered = [(number, name, parent) for number, (name, parent) in enumerate(CATEGORIES, 1)]
    conn.executemany("INSERT INTO categories VALUES (?, ?, ?)", numbered)
    leaves = [number for number, _, parent in numbered if parent is not None]
    prices = []
    for number in range(1, PRODUCTS + 1):
        price = 95 + 10 * dice.skewed(2_400)
        weight = None if dice.chance(0.1) else round(0.05 + dice.below(400) / 40, 3)
        picture = dice.blob(24 + dice.below(40)) if dice.chance(0.25) else None
        name = f"{dice.pick(ADJECTIVES)} {dice.pick(NOUNS).lower()}"
        row = (number, f"P-{number:05d}", name, dice.pick(leaves), price, weight, picture)
        conn.execute("INSERT INTO products VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        prices.append(price)
    return prices


def fill_customers(conn: sqlite3.Connection, dice: Dice) -> None:
    """Insert the customers and, for one in four, notes."""
    for number in range(1, CUSTOMERS + 1):
        name = f"{dice.pick(FIRST_NAMES)} {dice.pick(LAST_NAMES)}"
        joined = stamp(dice.below(MINUTES // 2))[:10]
        discount = dice.pick((2.5, 5.0, 7.5)) if dice.chance(0.1) else None
        row = (number, name, email_of(name, number, dice), dice.pick(COUNTRIES)[0], joined, discount)
        conn.execute("INSERT INTO customers VALUES (?, ?, ?, ?, ?, ?)", row)
        if dice.chance(0.25):
            body = None if dice.chance(0.05) else dice.pick(NOTES)
            attachment = dice.blob(dice.below(48)) if dice.chance(0.1) else None
            conn.execute(
                "INSERT INTO notes (customer_id, body, attachment) VALUES (?, ?, ?)",
                (number, body, attachment),
            )


def fill_orders(conn: sqlite3.Connection, dice: Dice, prices: list[int]) -> None:
    """Insert the orders in the order of time, each with its items, payment and events."""
    minutes = sorted(dice.below(MINUTES) for _ in range(ORDERS))
    for number, minute in enumerate(minutes, 1):
        customer = 1 + dice.skewed(CUSTOMERS)
        status = STATUSES[0] if number > ORDERS - 150 else dice.pick(STATUSES[1:3] * 9 + STATUSES[3:])
        paid, shipped = minute + 1 + dice.below(600), minute + 700 + dice.below(5_000)
        changed = {"open": minute, "paid": paid, "shipped": shipped, "cancelled": minute + 30}[status]
        conn.execute(
            "INSERT INTO orders (id, customer_id, placed_at, status, changed_at) VALUES (?, ?, ?, ?, ?)",
            (number, customer, stamp(minute), status, stamp(changed)),
        )
        amount = fill_items(conn, dice, prices, (customer, number))
        if status in ("paid", "shipped"):
            method = dice.pick(("card", "card", "card", "invoice", "transfer"))
            conn.execute(
                "INSERT INTO payments (customer_id, order_id, method, amount_cents, paid_at) VALUES (?, ?, ?, ?, ?)",
                (customer, number, method, amount, stamp(paid)),
            )
        if status in ("shipped", "cancelled"):
            conn.execute("INSERT INTO order_events VALUES (?, ?, ?, ?)", (customer, number, status, stamp(changed)))


def fill_items(conn: sqlite3.Connection, dice: Dice, prices: list[int], order: tuple[int, int]) -> int:
    """Insert one order's lines and return their total in cents."""
    total = 0
    for line in range(1, 2 + dice.skewed(6)):
        product, quantity = 1 + dice.skewed(PRODUCTS), 1 + dice.skewed(5)
        price = prices[product - 1]
        total += price * quantity
        conn.execute(
            "INSERT INTO order_items (customer_id, order_id, line, product_id, quantity, unit_price_cents) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (*order, line, product, quantity, price),
        )
    return total


def fill_audit_log(conn: sqlite3.Connection, dice: Dice) -> None:
    """Insert the log of the back office: a table without any key."""
    for minute in sorted(dice.below(MINUTES) for _ in range(AUDIT_ROWS)):
        actor = dice.pick(("amélie", "björn", None))
        action = dice.pick(("signed in", "signed out", "changed a price", "printed labels"))
        conn.execute("INSERT INTO audit_log VALUES (?, ?, ?)", (stamp(minute), actor, action))


def build(path: str | Path) -> None:
    """Write the sample to ``path``, which must not exist yet (``":memory:"`` is of no use here)."""
    if Path(path).exists():
        raise FileExistsError(f"{path} exists already")
    conn = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("page_size = 4096", "journal_mode = OFF", "synchronous = OFF", "foreign_keys = ON"):
            conn.execute(f"PRAGMA {pragma}")
        conn.executescript("BEGIN;" + SCHEMA)
        dice = Dice(SEED)
        prices = fill_references(conn, dice)
        fill_customers(conn, dice)
        fill_orders(conn, dice, prices)
        fill_audit_log(conn, dice)
        conn.execute("COMMIT")
        conn.execute("VACUUM")
        conn.execute("PRAGMA journal_mode = DELETE")
    finally:
        conn.close()


def dump(path: str | Path) -> Iterator[str]:
    """Yield the content as lines of text: the schema as written, then each table's rows in stored order."""
    conn = sqlite3.connect(path)
    try:
        listing = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
        objects = conn.execute(listing).fetchall()
        for _, _, sql in objects:
            yield sql
        for kind, name, _ in objects:
            if kind == "table":
                for row in conn.execute(f'SELECT * FROM "{name}"'):
                    yield f"{name} {row!r}"
    finally:
        conn.close()


def main(arguments: Sequence[str]) -> int:
    """Write the file named on the command line, or ``orders.db`` beside this script, over an older one."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print("usage: python data/make_orders.py [FILE]", file=sys.stderr)
        return 2
    target = Path(arguments[0]) if arguments else Path(__file__).with_name("orders.db")
    fresh = target.with_name(target.name + ".new")
    fresh.unlink(missing_ok=True)
    build(fresh)
    fresh.replace(target)
    print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
