"""Decoding and encoding beside the making: what runs at the same time, in which order, how far."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from wristaugment.jobs.ahead import Ahead

LIMIT = 20.0  # seconds for anything to happen


def raws(count: int) -> list:
    return [SimpleNamespace(record=SimpleNamespace(index=index)) for index in range(count)]


def run(decode, make, write, wanted=lambda raw: True):
    """What `write(ahead)` gives, run as a writer."""
    with Ahead(decode, make, wanted) as ahead:
        return ahead.run(lambda: write(ahead))


def index(raw) -> int:
    return raw.record.index


def test_every_record_is_made_of_what_it_was_decoded_to_in_order():
    made = []

    def make(raw, decoded):
        made.append(index(raw))
        return decoded + 1

    def write(ahead):
        return [ahead.result(raw) for raw in ahead.records(iter(raws(5)))]

    assert run(lambda raw: 10 * index(raw), make, write) == [1, 11, 21, 31, 41]
    assert made == [0, 1, 2, 3, 4]


def test_what_is_being_made_already_is_not_decoded_again():
    making = {number: threading.Event() for number in range(4)}
    decoded = []

    def write(ahead):
        for raw in ahead.records(iter(raws(4))):
            assert index(raw) == 0 or making[index(raw)].wait(LIMIT)
            ahead.result(raw)

    run(lambda raw: decoded.append(index(raw)), lambda raw, _: making[index(raw)].set(), write)
    assert decoded == [0, 1, 2, 3]


def test_while_one_is_written_the_next_is_made_and_the_one_after_decoded():
    making = {number: threading.Event() for number in range(4)}
    decoding = {number: threading.Event() for number in range(4)}

    def decode(raw):
        decoding[index(raw)].set()

    def make(raw, _):
        making[index(raw)].set()
        return index(raw)

    def write(ahead):
        for raw in ahead.records(iter(raws(4))):
            ahead.result(raw)
            # "Encoding": it would wait for ever if it had to end before the next is begun.
            if index(raw) + 1 < 4:
                assert making[index(raw) + 1].wait(LIMIT)
        return True

    assert run(decode, make, write)
    assert all(event.is_set() for event in decoding.values())


def test_nobody_runs_further_ahead_than_a_step_each():
    decoded, made, done = [], [], []

    def write(ahead):
        # As HDF5's writer does: all records are known before the first is asked for.
        for raw in list(ahead.records(iter(raws(8)))):
            ahead.result(raw)
            assert max(made) <= index(raw) + 1 and max(decoded) <= index(raw) + 2
            done.append(index(raw))

    run(
        lambda raw: decoded.append(index(raw)),
        lambda raw, _: made.append(index(raw)),
        write,
    )
    assert done == list(range(8)) and sorted(made) == done


def test_records_are_made_in_the_thread_that_called():
    threads = set()

    def write(ahead):
        assert threading.current_thread() is not here
        for raw in ahead.records(iter(raws(3))):
            ahead.result(raw)

    here = threading.current_thread()
    run(lambda raw: None, lambda raw, _: threads.add(threading.current_thread()), write)
    assert threads == {here}


def test_a_writer_may_pass_records_over_and_ask_in_another_order():
    made = []

    def make(raw, _):
        made.append(index(raw))
        return index(raw)

    def write(ahead):
        found = list(ahead.records(iter(raws(6))))
        return [ahead.result(found[number]) for number in (1, 4, 2)]

    assert run(lambda raw: None, make, write, lambda raw: index(raw) != 4) == [1, 4, 2]
    assert 0 not in made


@pytest.mark.parametrize("where", ["decode", "make", "write"])
def test_what_goes_wrong_anywhere_is_raised(where):
    def wrong(name, raw):
        if name == where and index(raw) == 2:
            raise ValueError(f"{name} of {index(raw)}")

    def write(ahead):
        for raw in ahead.records(iter(raws(5))):
            ahead.result(raw)
            wrong("write", raw)

    with pytest.raises(ValueError, match=f"{where} of 2"):
        run(lambda raw: wrong("decode", raw), lambda raw, _: wrong("make", raw), write)
