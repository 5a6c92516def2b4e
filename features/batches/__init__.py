"""Batches, in OpenAI's and Anthropic's form: routes, input files, and the keeper that makes jobs of their lines.

``batches`` has the operations of a batch's owner in the database, ``batch_steps`` the keeper's."""
