"""Short forms of benchmarks/chaos.py's scenarios, on real Ray where it is about actors."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scenarios():
    """The benchmark's modules can be imported."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def chaos(scenarios):
    """(where processes are started and swept up, what a job on its dataset must leave)."""
    from chaos_scenarios.kit import Expected, Lab

    with Lab(True) as lab:
        yield lab, Expected.of(lab, lab.source(4, 4, ballast={2: 200_000}), ray=False)


@pytest.fixture
def totals():
    """What scenarios count; every tree that they have made must be right."""
    found: Counter[str] = Counter()
    yield found
    wrong = ("lost", "duplicate", "invalid", "leftovers", "differing", "unequal trees")
    assert found["trees"] and not any(found[name] for name in wrong), found


def test_a_record_at_which_actors_are_killed_again_and_again_is_innocent(chaos, totals):
    from chaos_scenarios.actors import hit_again

    lab, expected = chaos
    hit_again(lab, expected, "1/2", 3, totals)
    assert totals["kills"] == 3 and not totals["quarantined"]


def test_an_actor_that_stood_still_past_its_lease_publishes_nothing(chaos, totals):
    from chaos_scenarios.leases import one_actor

    lab, expected = chaos
    one_actor(lab, expected, totals)
    assert totals["stopped"] == 1 and not totals["published late"] and not totals["quarantined"]


def test_four_actors_that_finish_in_any_order_make_the_tree_of_one(chaos, totals):
    from chaos_scenarios.actors import in_any_order

    lab, expected = chaos
    in_any_order(lab, expected, 4, totals)
    assert totals["most actors"] == 4


@pytest.mark.parametrize("limit", ["size=20k", "size=120k", "size=300k", "size=9m,nr_inodes=24"])
def test_a_full_disk_ends_with_4_and_with_room_the_job_goes_on(chaos, totals, limit):
    from chaos_scenarios.disks import fill
    from chaos_scenarios.kit import Skipped

    lab, expected = chaos
    try:
        fill(lab, expected, False, limit, totals)
    except Skipped as reason:
        totals["trees"] += 1  # nothing was made that could be wrong
        pytest.skip(str(reason))
    assert totals["exit 4"] == 1 and not totals["corrupt"]
