"""Where the project stores its rows."""
