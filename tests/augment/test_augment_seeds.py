"""The seed of a record depends on the job's seed and the record's place, and on all of both."""

from wristaugment.augment.seeds import record_seed
from wristaugment.readers.episode import Record


def test_seed_is_stable():
    # A changed value would change every copy that was ever made with this version.
    assert record_seed(0, Record("train", 0, 0)) == 2861787128712351097


def test_every_part_counts_and_nothing_collides():
    records = [
        Record(split, shard, index)
        for split in ("train", "val", "train1")
        for shard in range(12)
        for index in range(12)
    ]
    seeds = {record_seed(seed, record) for seed in (0, 1, -1, 2**40) for record in records}
    assert len(seeds) == 4 * len(records)
    assert all(0 <= seed < 2**63 for seed in seeds)
