"""What prompt templates add to submissions."""

from headrace.features.templates.template_filling import TenantTemplates
from headrace.producer_api.submission.submission_hook import SubmissionPart

PART = SubmissionPart(templates=TenantTemplates)
