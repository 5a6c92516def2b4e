"""The task ``predict``: rows of features to classes or numbers, by a dense network, with explanations."""
