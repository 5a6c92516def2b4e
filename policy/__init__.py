"""What may go to a model and what may come back: recognisers of personal data and secrets, declared rules, guards for
whole texts and for streams, and classifiers. Pure: it knows no job, no table and no connection.
"""
