"""A job's shards made in this process, as jobs.run has them made in Ray actors."""

from __future__ import annotations

from wristaugment.jobs.actor import ShardActor


def made(job, args, pending, resumed, say):
    """Takes the place of jobs.run._made: the same actor object, the same ledger."""
    actor = ShardActor(job.work)
    for task in pending:
        staged = job.ledger.grant(task.split, task.index)
        outcome = actor.make_shard(task.split, task.index, staged)
        assert outcome.kind == "done", outcome
        job.ledger.publish(task.split, task.index, staged, job.plan["place"], outcome.entry)
        yield task, outcome.entry
