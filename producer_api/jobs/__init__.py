"""Routes of the native API: submit, read, list, cancel, stream and replay jobs; also queues and models.

``producer_api.submission`` validates and stores a job."""
