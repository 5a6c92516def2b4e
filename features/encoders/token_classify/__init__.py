"""The task ``token_classify``: texts in, the entities that a token classifier finds in them out."""
