"""The random seed of one episode, the same wherever and whenever it is worked on."""

from __future__ import annotations

import hashlib

from ..readers.episode import Record


def record_seed(seed: int, record: Record) -> int:
    """The seed of one record: 63 bits, from the job's seed and the record's place alone.

    Hashed, not counted or drawn, so that the order of the work, the number of workers and a resumed
    job have no say in it, and neighbouring records share nothing.
    """
    place = f"wristaugment record seed\0{int(seed)}\0{record.split}\0{record.shard}\0{record.index}"
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") >> 1
