"""How files are erased: those that came with requests, with their input; those that jobs made, with
their output; others in their own time, or by a purge.

Their contents in the storage are removed later, as for files deleted by a request.
"""

from headrace.store.jobs.erasure import ErasurePart, PurgedRows, erasing, sweeping

# The oldest files whose time is over.
_DUE = """
DELETE FROM files WHERE id = ANY (ARRAY(
    SELECT id FROM files
    WHERE tenant_id = :tenant_id AND created_at < now() - make_interval(secs => :ttl_s)
    ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED))
"""

PART = ErasurePart(
    inputs=erasing("DELETE FROM files WHERE job_id = ANY(CAST(:ids AS text[]))"),
    outputs=erasing("DELETE FROM files WHERE result_of = ANY(CAST(:ids AS text[]))"),
    sweeps={"num_files": sweeping("files_s", _DUE)},
    purges=(PurgedRows("files"), PurgedRows("uploads")),
)
