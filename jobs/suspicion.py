"""Which records are suspected of ending the process that makes them, and which are given up.

The rule is in `failures`; this counts. A record is in one of four states: free, suspected (to be
tried alone), given up (blamed ATTEMPTS times), and acquitted, which is free again. It moves as

    free -> suspected -> free            tried alone, and did no harm
            suspected -> given up        blamed ATTEMPTS times
"""

from __future__ import annotations

from collections.abc import Hashable

from .failures import ATTEMPTS


class Suspicion:
    """The suspects of a job. Shards are told apart by any hashable value."""

    def __init__(self) -> None:
        self._suspects: dict[Hashable, list[int]] = {}
        self._blames: dict[tuple[Hashable, int], int] = {}
        self._given_up: dict[Hashable, dict[int, str]] = {}
        self._times: dict[tuple[Hashable, int], int] = {}
        self._postponed: set[Hashable] = set()

    def note(self, shard: Hashable, record: int) -> int:
        """Note that an actor died at a record, for whatever reason; returns how often by now."""
        count = self._times[shard, record] = self.times(shard, record) + 1
        return count

    def times(self, shard: Hashable, record: int) -> int:
        """How often actors died at a record."""
        return self._times.get((shard, record), 0)

    def suspect(self, shard: Hashable, record: int) -> None:
        """Have a record tried alone before its shard is made again."""
        suspects = self._suspects.setdefault(shard, [])
        if record not in suspects and record not in self._given_up.get(shard, {}):
            suspects.append(record)

    def next_suspect(self, shard: Hashable) -> int | None:
        """The record to try alone now: one at a time."""
        if shard in self._postponed:
            self._postponed.remove(shard)
            return None
        suspects = self._suspects.get(shard)
        return suspects[0] if suspects else None

    def postpone(self, shard: Hashable) -> None:
        """A trial came to nothing: make the shard once as if nobody were suspected.

        Where something kills actors faster than a trial takes, the record may be made that way.
        """
        self._postponed.add(shard)

    def acquit(self, shard: Hashable, record: int) -> None:
        """It was tried alone and did no harm."""
        self._suspects[shard].remove(record)
        self._blames.pop((shard, record), None)

    def blame(self, shard: Hashable, record: int, fault: str) -> int:
        """It ended, or held up, the process that made it; returns how often by now.

        Args:
            fault: in words that are the same for every such death, since they go into the ledger.
        """
        count = self._blames[shard, record] = self._blames.get((shard, record), 0) + 1
        assert count <= ATTEMPTS, "a record that was given up was tried again"
        if count == ATTEMPTS:
            self._given_up.setdefault(shard, {})[record] = f"{fault}, {ATTEMPTS} times"
            self._suspects[shard].remove(record)
        return count

    def given_up(self, shard: Hashable) -> dict[int, str]:
        """The records of a shard that are not to be tried any more, and why."""
        return dict(self._given_up.get(shard, {}))

    def forget(self, shard: Hashable) -> None:
        """The shard is made: what was said against its records is over."""
        self._postponed.discard(shard)
        for kept in (self._suspects, self._given_up):
            kept.pop(shard, None)
        for counts in (self._blames, self._times):
            for key in [key for key in counts if key[0] == shard]:
                del counts[key]
