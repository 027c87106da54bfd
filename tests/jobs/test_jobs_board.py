"""What an attempt says of itself, how it is lost, and who is suspected of what."""

from __future__ import annotations

import time

import numpy as np
import pytest
from wristaugment.jobs import board
from wristaugment.jobs.board import MAKING, READING, Board, Lost, look
from wristaugment.jobs.failures import ATTEMPTS, how_it_ended
from wristaugment.jobs.ledger import Ledger
from wristaugment.jobs.storage import FOLDER, FolderStorage
from wristaugment.jobs.streams import StreamStore
from wristaugment.jobs.suspicion import Suspicion
from wristaugment.readers.episode import WristStream

LIMIT = 20.0  # seconds for anything to happen


@pytest.fixture
def store(tmp_path):
    (tmp_path / "s").mkdir()
    return FolderStorage(tmp_path)


def test_an_actor_says_where_it_is_and_shows_life(store, monkeypatch):
    monkeypatch.setattr(board, "BEAT", 0.02)
    board.grant(store, "s/1")
    with Board(store, "s/1") as own:
        own.at(READING, 3)
        own.at(MAKING, 2)
        own.made()
        own.made(kept=True)
        said = look(store, "s/1")
        assert (said.made, said.kept, said.records) == (2, 1, [2, 3])
        own.at(READING, None)
        assert look(store, "s/1").at == ((MAKING, 2),)
        until = time.monotonic() + LIMIT
        while look(store, "s/1").beats < 3:
            assert time.monotonic() < until
    # What stands there when a process dies is not wiped: it says which record it died at.
    assert look(store, "s/1").at == ((MAKING, 2),)


def test_an_attempt_that_was_taken_back_notices_and_leaves_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setattr(board, "BEAT", 0.02)
    board.grant(store, "s/1")
    with Board(store, "s/1") as own:
        board.revoke(store, "s/1")
        until = time.monotonic() + LIMIT
        with pytest.raises(Lost):
            while time.monotonic() < until:
                own.at(MAKING, 1)
                time.sleep(0.01)
    assert list((tmp_path / "s").iterdir()) == []


def test_an_attempt_without_a_grant_is_lost_from_the_start(store):
    with Board(store, "s/1") as own, pytest.raises(Lost):
        own.check()
    assert look(store, "s/1") is None


def test_what_an_actor_keeps_late_finds_no_place(tmp_path):
    ledger = Ledger(tmp_path)
    stream = WristStream(np.zeros((2, 4, 4, 3), np.uint8), np.ones(2, bool), np.ones(2, np.float32))
    with ledger.opened({"seed": 0}):
        ledger.grant("train", 0)
        late = StreamStore(ledger.store, ledger.streams("train", 0))
        late.keep(0, stream, {})
        assert ledger.kept("train", 0, 0)
        ledger.store.remove_folder(ledger.streams("train", 0))
        late.keep(1, stream, {})
    assert not (tmp_path / FOLDER / "streams" / "train-00000").exists()


def test_a_suspect_is_acquitted_or_given_up_and_no_one_else_is():
    found = Suspicion()
    for record in (4, 7):
        found.suspect("a", record)
    assert found.next_suspect("a") == 4 and found.next_suspect("b") is None
    found.acquit("a", 4)
    assert found.next_suspect("a") == 7
    for count in range(1, ATTEMPTS + 1):
        assert found.next_suspect("a") == 7
        assert found.blame("a", 7, "ends its process") == count
    assert found.next_suspect("a") is None
    assert found.given_up("a") == {7: f"ends its process, {ATTEMPTS} times"}
    assert found.given_up("b") == {}
    found.suspect("a", 7)
    assert found.next_suspect("a") is None, "it would be tried a fourth time"
    with pytest.raises(AssertionError):
        found.blame("a", 7, "ends its process")
    found.forget("a")
    assert found.given_up("a") == {}


def test_after_a_trial_that_came_to_nothing_the_shard_is_made_once_without():
    found = Suspicion()
    found.suspect("a", 4)
    found.postpone("a")
    assert [found.next_suspect("a") for _ in range(3)] == [None, 4, 4]


def test_blames_do_not_add_up_over_an_acquittal():
    found = Suspicion()
    for _ in range(3):
        found.suspect("a", 1)
        assert found.blame("a", 1, "late") == 1
        found.acquit("a", 1)
    assert found.given_up("a") == {}


def test_the_end_of_a_process_in_words():
    assert [how_it_ended(code) for code in (3, -11, -9, -250)] == [
        "exit code 3",
        "SIGSEGV",
        "SIGKILL",
        "signal 250",
    ]
