"""The deltas of an attempt's choices as one stream: numbered together, and kept for the outcome."""

from dataclasses import replace

from headrace.store.streams.checkpoints import Checkpoint, ChoiceMark
from headrace.store.streams.stream_log import Frame


class ChoiceStream:
    """The deltas of all choices since ``start``, in the order in which they came. Not thread-safe.

    Every frame that it takes has a mark.
    """

    def __init__(self, start: Checkpoint) -> None:
        self._start = start
        self._frames: list[Frame] = []

    def take(self, frame: Frame) -> Frame:
        """Return the frame with its number in the stream."""
        numbered = replace(frame, seq=self._start.num_deltas + len(self._frames) + 1)
        self._frames.append(numbered)
        return numbered

    def checkpoint(self) -> Checkpoint:
        """Return the whole stream: what earlier attempts have left, and the frames of this one."""
        start, frames = self._start, self._frames
        logprobs = (*(start.logprobs or ((),) * start.num_deltas), *(frame.logprobs for frame in frames))
        return Checkpoint(
            (*start.deltas, *(frame.text or "" for frame in frames)),
            (*start.token_ids, *(frame.token_ids for frame in frames)),
            start.lineage,
            logprobs if any(logprobs) else (),
            (*start.marks, *(frame.mark or ChoiceMark(0) for frame in frames)),
            start.first_token_s,
        )
