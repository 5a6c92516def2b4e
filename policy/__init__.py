"""The policy layer: it redacts personal data and secrets before the model and checks what the model answers.

Pure functions over text; no database and no HTTP."""
