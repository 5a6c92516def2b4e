"""Text before it is searched: normalised views, escapes, languages, and regular expressions with a bounded cost.

The searched kinds are in ``policy.recognisers``."""
