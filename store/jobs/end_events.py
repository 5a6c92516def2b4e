"""The webhook event that a face has for the end of its jobs, beside the event of the job."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndEvents:
    """The ``PART`` of a feature's file ``end_events``.

    ``table`` has a row with the ``job_id`` of each job of the face. ``type`` is the SQL expression of the event's name,
    of a row of ``ended`` (``store.jobs.terminal``). The names are in ``store.schema.event_types``.
    """

    table: str
    type: str
