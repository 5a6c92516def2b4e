"""The policy layer: it redacts personal data and secrets before the model and checks the outputs of the model.

Pure functions over text; no database and no HTTP."""
