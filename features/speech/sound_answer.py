"""The sound of a job as bytes for its caller, while it is made: each sample once, whichever attempts made it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.concurrency import run_in_threadpool

from headrace.features.files import result_links
from headrace.features.files.blob_storage import Blobs, read_blocks
from headrace.features.speech.sound import SoundStream, decoded, num_samples, of_delta
from headrace.features.speech.task import SoundFormat
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.streaming.answers import answer_of
from headrace.producer_api.streaming.job_events import Ended, TextPiece, follow
from headrace.store.jobs.jobs import Job


class SoundAnswer:
    """Follows one job. ``rate``: samples a second of its voice. ``ended``: the job, once it has ended."""

    def __init__(self, runtime: Runtime, blobs: Blobs, job: Job, rate: int) -> None:
        self._runtime = runtime
        self._blobs = blobs
        self._job = job
        self._rate = rate
        self._kind = SoundFormat(job.payload["response_format"])
        self._num_pieces = 0
        self._num_samples = 0
        self.ended: Job | None = None

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the bytes as they come, b"" where nothing has come for a while. Raises JobUnanswered.

        Pieces are numbered through all attempts, so one that a later attempt says again is not sent again. What the
        stream lacks is in the job's file: all of it for a job that has ended before.
        """
        stream = await run_in_threadpool(SoundStream, self._rate, self._kind)
        async with aclosing(follow(self._runtime, self._job)) as events:
            async for event in events:
                match event:
                    case None:
                        yield b""
                    case TextPiece(cursor=cursor, text=text) if self._is_next(cursor.seq):
                        self._num_pieces += 1
                        pcm = await run_in_threadpool(of_delta, text, self._rate)
                        self._num_samples += num_samples(pcm)
                        yield await run_in_threadpool(stream.add, pcm)
                    case Ended(job=job):
                        answer_of(job)
                        self.ended = job
                        yield await run_in_threadpool(self._rest, job, stream)
                    case _:
                        pass

    def _is_next(self, number: int) -> bool:
        """Return True if the piece of this number is to be sent. A FLAC file comes whole, because its header has its
        length, without which some readers do not read it.
        """
        return self._kind is not SoundFormat.FLAC and number == self._num_pieces + 1

    def _rest(self, job: Job, stream: SoundStream) -> bytes:
        """Return what was not sent yet. Blocks."""
        num_missing = answer_of(job)["seconds"] * self._rate - self._num_samples
        if num_missing <= self._rate // 1000:  # the seconds of the output are rounded
            return stream.finish()
        file, _ = result_links.find(self._runtime.db, job.tenant_id, job.id, 0)
        content = b"".join(read_blocks(self._blobs, file.digest))
        if not self._num_samples:
            return content
        pcm = decoded(content, self._rate, self._kind)[2 * self._num_samples :]
        return stream.add(pcm) + stream.finish()
