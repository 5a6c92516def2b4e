"""The seeds of a job's requests: an attempt that starts anew generates the same text."""

import hashlib

from headrace.store.payloads.sampling_params import Sampling

_SEEDS = 2**63


def seeded(sampling: Sampling, job_id: str, prompt_number: int = 0) -> Sampling:
    """Return the sampling parameters with a seed; without one in the request it is derived from the job's id.

    Then each of several prompts has another one. So an attempt that starts anew generates the same text as the lost
    one, and readers keep theirs.
    """
    if sampling.seed is not None:
        return sampling
    name = f"{job_id}.{prompt_number}" if prompt_number else job_id
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return sampling.model_copy(update={"seed": int.from_bytes(digest, "big") >> 1})


def sample_seed(seed: int | None, sample: int) -> int | None:
    """Return the seed of a prompt's answer with this number, from 0; the first one has the request's own."""
    return None if seed is None else (seed + sample) % _SEEDS
