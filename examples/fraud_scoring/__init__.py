"""Fraud scores for payments: a generator of payments, the training of a tabular model, and scores through the API."""
