"""The statements of ``store.registry.models``: those that register a version, and the list of models."""

from sqlalchemy import text

# Adds files, unless they exist.
INSERT_FILES = text("""
INSERT INTO model_files (digest, content)
SELECT digest, content FROM unnest(CAST(:digests AS text[]), CAST(:contents AS bytea[])) AS f(digest, content)
ORDER BY digest
ON CONFLICT (digest) DO NOTHING  -- the same digest means the same content
""")

# Adds a model, unless it exists.
INSERT_MODEL = text("INSERT INTO models (name, task) VALUES (:name, :task) ON CONFLICT (name) DO NOTHING")

# Locks a model.
LOCK_MODEL = text("SELECT task FROM models WHERE name = :name FOR UPDATE")

# A version with the same digest, dtype, base and default template. One that shares the weights of a version of its
# model is the same as one with weights of its own.
SAME_VERSION = text("""
SELECT version FROM model_versions
WHERE model = :model AND digest = :digest AND dtype = :dtype AND retired_at IS NULL
    AND template ->> 'digest' IS NOT DISTINCT FROM CAST(:template_digest AS text)
    AND ((base_model, base_version) IS NOT DISTINCT FROM (CAST(:base_model AS text), CAST(:base_version AS int))
        OR CAST(:base_model AS text) IS NULL AND base_model = :model)
ORDER BY version DESC LIMIT 1
""")

# The version with weights of its own and the same digest and dtype, locked against its retirement.
SAME_WEIGHTS = text("""
SELECT version FROM model_versions
WHERE model = :model AND digest = :digest AND dtype = :dtype AND retired_at IS NULL AND base_model IS NULL
ORDER BY version LIMIT 1 FOR SHARE
""")

# Lock the base of an adapter against its retirement.
KEEP_BASE = text("""
SELECT retired_at FROM model_versions WHERE model = :base_model AND version = :base_version FOR SHARE
""")

# Sets the engine of a version: its address has changed.
SET_ENGINE = text("""
UPDATE model_versions SET engine = CAST(:engine AS jsonb) WHERE model = :model AND version = :version
""")

# Adds the next version. The number of a deleted version is not given again (``last_version``).
INSERT_VERSION = text("""
INSERT INTO model_versions (
    model, version, task, runner, source, digest, dtype, context_window, files, engine, golden, state, state_at,
    base_model, base_version, quantized_from, template
)
SELECT
    CAST(:model AS text), GREATEST(max(version), (SELECT last_version FROM models WHERE name = :model)) + 1,
    :task, :runner, :source, :digest, :dtype, :context_window,
    CAST(:files AS jsonb), CAST(:engine AS jsonb), CAST(:golden AS jsonb), :state, now(), CAST(:base_model AS text),
    CAST(:base_version AS int), CAST(:quantized_from AS text), CAST(:template AS jsonb)
FROM model_versions WHERE model = :model
RETURNING version
""")

# Lets a rejected version be verified again, with the golden answers that are given now.
VERIFY_AGAIN = text("""
UPDATE model_versions SET
    state = 'registered', state_at = now(), state_reason = NULL, verification = NULL,
    golden = COALESCE(CAST(:golden AS jsonb), golden)
WHERE model = :model AND version = :version AND state IN ('registered', 'rejected')
""")

# Whether these are the golden answers of a version; NULL if it has none.
HAS_GOLDEN = text("""
SELECT golden = CAST(:golden AS jsonb) FROM model_versions WHERE model = :model AND version = :version
""")

# All models, with aliases and versions.
LIST_MODELS = text("""
SELECT
    name, task, created_at,
    (SELECT COALESCE(jsonb_object_agg(alias, version), '{}') FROM aliases WHERE model = models.name) AS aliases,
    ARRAY(
        SELECT version FROM model_versions WHERE model = models.name AND retired_at IS NULL ORDER BY version DESC
    ) AS versions,
    (
        SELECT COALESCE(jsonb_object_agg(version, engine ->> 'kind'), '{}')
        FROM model_versions WHERE model = models.name AND engine IS NOT NULL
    ) AS engines,
    (
        SELECT COALESCE(jsonb_object_agg(version, base_model || '@' || base_version), '{}')
        FROM model_versions WHERE model = models.name AND base_model <> models.name
    ) AS bases,
    (
        SELECT COALESCE(jsonb_object_agg(version, context_window), '{}') FROM model_versions WHERE model = models.name
    ) AS context_windows
FROM models ORDER BY name
""")
