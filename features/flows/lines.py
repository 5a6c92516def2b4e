"""The URLs of pipelines that a batch may name."""

from headrace.features.flows.pipeline_jobs import reader_of
from headrace.producer_api.tasks.line_urls import LineUrls

PART = LineUrls("/v1/pipelines/NAME/jobs", reader_of)
