"""A nightly batch whose end comes by webhook."""
