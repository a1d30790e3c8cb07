"""Locks between processes, on files that are no databases. Two open files stand for two processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardlite.connection.file_lock import FileLock

Opener = Callable[[], FileLock]


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    opened = []

    def make() -> FileLock:
        descriptor = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
        opened.append(descriptor)
        return FileLock(descriptor)

    yield make
    for descriptor in opened:
        os.close(descriptor)


def test_one_has_it_alone(opener: Opener) -> None:
    first, second = opener(), opener()
    assert first.try_exclusive()
    assert first.try_exclusive(), "again"
    assert not second.try_exclusive()
    assert not second.try_share()
    assert not second.share(0.01)
    first.unlock()
    first.unlock()
    assert second.try_exclusive()


def test_many_share_it(opener: Opener) -> None:
    locks = [opener() for _ in range(20)]
    assert all(lock.try_share() for lock in locks)
    late = opener()
    assert not late.try_exclusive()
    for lock in locks:
        lock.unlock()
    assert late.try_exclusive()


def test_from_alone_to_shared(opener: Opener) -> None:
    first, second = opener(), opener()
    assert first.try_exclusive()
    assert first.share(0)
    assert second.share(0)
    assert not opener().try_exclusive()


def test_closing_a_file_lets_its_lock_go(opener: Opener, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    assert FileLock(descriptor).try_exclusive()
    other = opener()
    assert not other.try_exclusive()
    os.close(descriptor)
    assert other.try_exclusive()


def test_a_closed_descriptor_is_an_error(opener: Opener, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.close(descriptor)
    with pytest.raises(OSError):
        FileLock(descriptor).try_exclusive()
