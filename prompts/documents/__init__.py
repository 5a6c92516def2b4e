"""Documents as the input of a model: the text of a file, read in a bounded process, and its passages by tokens."""
