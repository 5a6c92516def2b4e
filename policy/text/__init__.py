"""Text before it is searched: normalised views, escapes, languages, and regular expressions with a bounded cost.

What is searched for is ``policy.recognisers``."""
