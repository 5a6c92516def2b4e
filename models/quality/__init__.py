"""The quality of a model version: its distance from a reference on texts, its speed, and the gate for number formats.

``scores`` compares the probabilities of two versions, ``continuations`` their greedy answers and speed.
"""
