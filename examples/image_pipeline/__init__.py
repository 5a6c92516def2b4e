"""A picture is classified, then described."""
