"""A web server on shards: a small guest book with Flask.

    pip install 'shardlite[flask]'
    python examples/web_server.py                 # serves http://127.0.0.1:5000 from ./guestbook
    python examples/web_server.py --check         # asks itself some questions and ends

Each guest's entries are on one shard, so the page of a guest reads one file. The manager is made once per process and
shared by all of the server's threads; ``get_db()`` returns it.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from flask import Flask, abort, request

from shardlite.errors import IntegrityError
from shardlite.integrations.flask import close_pool, get_db, get_pool_stats, init_app

GUESTS = "CREATE TABLE IF NOT EXISTS guests (name TEXT PRIMARY KEY COLLATE NOCASE, city TEXT NOT NULL)"
ENTRIES = """CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY,
    guest TEXT NOT NULL COLLATE NOCASE REFERENCES guests (name) ON DELETE CASCADE,
    body TEXT NOT NULL CHECK (length(body) BETWEEN 1 AND 500)
)"""


def create_app(directory: str) -> Flask:
    """Return the application; the shards are in ``directory``, and made there when they are missing."""
    app = Flask(__name__)
    app.config.update(SHARDLITE_DIR=directory, SHARDLITE_SHARDS=4, DB_POOL_SIZE=8, DB_TIMEOUT=10)
    init_app(app)
    with app.app_context():
        get_db().create_table(GUESTS)
        get_db().create_table(ENTRIES, shard_key="guest", colocate_with="guests")

    @app.put("/guests/<name>")
    def put_guest(name: str) -> dict[str, Any]:
        get_db().upsert("guests", {"name": name, "city": request.get_json()["city"]})
        return {"name": name, "shard": get_db().shard_for("guests", name)}

    @app.post("/guests/<name>/entries")
    def post_entry(name: str) -> tuple[dict[str, Any], int]:
        try:
            entry = get_db().insert("entries", {"guest": name, "body": request.get_json()["body"]})
        except IntegrityError as error:  # no such guest, or the text is too long
            abort(409, str(error))
        return {"id": entry}, 201

    @app.get("/guests/<name>")
    def get_guest(name: str) -> dict[str, Any]:
        guest = get_db().get("guests", name)
        if guest is None:
            abort(404)
        entries = get_db().select("entries", key=name, columns=["id", "body"], order_by="-id", limit=20)
        return {**guest, "entries": entries}

    @app.get("/cities")
    def cities() -> list[dict[str, Any]]:
        return get_db().aggregate("guests", "COUNT(*)", group_by="city")

    @app.get("/health")
    def health() -> dict[str, Any]:
        stats = get_pool_stats()
        return {"open_connections": stats["open_connections"], "rows": stats["total_rows"]}

    return app


def check() -> None:
    """Ask the application what a browser would."""
    with tempfile.TemporaryDirectory() as directory:
        app = create_app(directory)
        client = app.test_client()
        for name, city in (("Ann", "Oslo"), ("Bob", "Rome"), ("Cid", "Oslo")):
            answer = client.put(f"/guests/{name}", json={"city": city}).get_json()
            print(f"{name} lives on shard {answer['shard']}")
        for text in ("Hello", "Nice place"):
            assert client.post("/guests/Ann/entries", json={"body": text}).status_code == 201
        page = client.get("/guests/ANN").get_json()  # NOCASE: the same guest, the same shard
        assert [entry["body"] for entry in page["entries"]] == ["Nice place", "Hello"], page
        assert client.post("/guests/Nobody/entries", json={"body": "?"}).status_code == 409
        assert client.get("/guests/Nobody").status_code == 404
        assert client.get("/cities").get_json() == [
            {"city": "Oslo", "COUNT(*)": 2},
            {"city": "Rome", "COUNT(*)": 1},
        ]
        print(f"health: {client.get('/health').get_json()}")
        close_pool(app)
    print("all answers are right")


def main() -> None:
    """Serve, or check."""
    parser = argparse.ArgumentParser(description="A guest book on shards.")
    parser.add_argument("--dir", default="./guestbook")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--check", action="store_true", help="ask some questions and end")
    options = parser.parse_args()
    if options.check:
        check()
        return
    app = create_app(options.dir)
    try:
        app.run(port=options.port, threaded=True)
    finally:
        close_pool(app)


if __name__ == "__main__":
    main()
