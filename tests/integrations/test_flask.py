"""The Flask integration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

flask = pytest.importorskip("flask")

from shardlite.connection import Connection  # noqa: E402  # only where flask is there
from shardlite.driver import sqlite3  # noqa: E402  # as above
from shardlite.errors import PoolExhaustedError, ProgrammingError  # noqa: E402  # as above
from shardlite.integrations.flask import close_pool, get_db, get_pool_stats, init_app, init_pool  # noqa: E402  # as above
from shardlite.manager import ShardManager  # noqa: E402  # as above


def make_app(**config: Any) -> Any:
    app = flask.Flask("shop")
    app.config.update(config)
    init_app(app)

    @app.post("/users/<name>")
    def add(name: str) -> dict[str, Any]:
        get_db().execute("INSERT INTO users(name) VALUES (?)", (name,))
        if flask.request.args.get("fail"):
            raise RuntimeError("made up")
        if not flask.request.args.get("forget"):
            get_db().commit()
        return {"added": name}

    @app.get("/users")
    def users() -> list[str]:
        return [row["name"] for row in get_db().execute("SELECT name FROM users ORDER BY id")]

    @app.get("/stats")
    def stats() -> dict[str, Any]:
        return get_pool_stats()

    return app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Any]:
    app = make_app(DATABASE_PATH=str(tmp_path / "app.db"), DB_POOL_SIZE=2, DB_TIMEOUT=0.05)
    with app.app_context():
        get_db().execute("CREATE TABLE users(id INTEGER PRIMARY KEY, name)")
    yield app
    close_pool(app)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.db"]


def test_a_request_has_one_connection_and_gives_it_back(app: Any) -> None:
    with app.test_request_context():
        conn = get_db()
        assert isinstance(conn, Connection)
        assert conn.row_factory is sqlite3.Row
        assert get_db() is conn
        assert get_pool_stats()["active_connections"] == 1
    with app.app_context():
        assert get_pool_stats()["active_connections"] == 0
        assert get_pool_stats()["pool_size"] == 1


def test_requests(app: Any) -> None:
    client = app.test_client()
    assert client.post("/users/Ann").json == {"added": "Ann"}
    assert client.get("/users").json == ["Ann"]
    assert client.get("/stats").json["max_connections"] == 2


def test_what_was_not_committed_is_rolled_back(app: Any) -> None:
    client = app.test_client()
    client.post("/users/Bob?forget=1")
    assert client.post("/users/Eve?fail=1").status_code == 500
    assert client.get("/users").json == []
    assert client.get("/stats").json["active_connections"] == 0


def test_the_pool_size_and_the_timeout_are_the_configured_ones(app: Any) -> None:
    outer, inner = app.app_context(), app.app_context()
    with outer:
        get_db()
        with inner:
            get_db()
            with app.app_context(), pytest.raises(PoolExhaustedError, match=r"0\.05 s"):
                get_db()


def test_the_environment_is_read_when_the_configuration_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PATH", str(tmp_path / "env.db"))
    monkeypatch.setenv("DB_POOL_SIZE", "7")
    app = flask.Flask("shop")
    init_pool(app)
    with app.app_context():
        assert get_pool_stats()["max_connections"] == 7
    close_pool(app)


def test_nothing_is_opened_before_the_first_use(tmp_path: Path) -> None:
    make_app(DATABASE_PATH=str(tmp_path / "app.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pool_opens_again(app: Any) -> None:
    app.test_client().post("/users/Ann")
    close_pool(app)
    assert app.test_client().get("/users").json == ["Ann"]


def test_closing_in_the_middle_of_a_request(app: Any) -> None:
    with app.app_context():
        get_db()
        close_pool(app)


def test_shards(tmp_path: Path) -> None:
    app = make_app(SHARDLITE_DIR=str(tmp_path / "data"), SHARDLITE_SHARDS=2)
    with app.app_context():
        manager = get_db()
        assert isinstance(manager, ShardManager)
        assert manager.num_shards == 2
        manager.create_table("CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT)", shard_key="id")
        manager.insert("users", {"id": 1, "name": "Ann"})
        assert get_pool_stats()
    with app.app_context():
        assert get_db().get("users", 1)["name"] == "Ann"
    close_pool(app)
    assert not [path for path in (tmp_path / "data").iterdir() if path.name.endswith(("-wal", "-shm"))]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "neither is set"),
        ({"DATABASE_PATH": "a.db", "SHARDLITE_DIR": "d"}, "both are set"),
        ({"DATABASE_PATH": "a.db", "DB_POOL_SIZE": "many"}, "DB_POOL_SIZE must be a whole number, 1 or more"),
        ({"DATABASE_PATH": "a.db", "DB_POOL_SIZE": 0}, "DB_POOL_SIZE must be"),
        ({"DATABASE_PATH": "a.db", "DB_POOL_SIZE": 2.5}, "DB_POOL_SIZE must be"),
        ({"DATABASE_PATH": "a.db", "DB_TIMEOUT": -1}, "DB_TIMEOUT must be a number of seconds"),
        ({"DATABASE_PATH": "a.db", "DB_TIMEOUT": "soon"}, "not 'soon'"),
        ({"SHARDLITE_DIR": "d", "SHARDLITE_SHARDS": "x"}, "SHARDLITE_SHARDS must be"),
    ],
)
def test_bad_settings_are_named(config: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_PATH", "SHARDLITE_DIR", "DB_POOL_SIZE", "DB_TIMEOUT", "SHARDLITE_SHARDS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ProgrammingError, match=message):
        make_app(**config)


def test_setting_up_twice_is_refused(app: Any) -> None:
    with pytest.raises(ProgrammingError, match="already"):
        init_app(app)


def test_an_application_without_the_extension_is_told_what_to_do() -> None:
    with flask.Flask("bare").app_context(), pytest.raises(ProgrammingError, match=r"call .*init_app"):
        get_db()


def test_without_flask_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['flask'] = None\nimport shardlite.integrations.flask"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs Flask, which is not installed: pip install 'shardlite[flask]'" in done.stderr
