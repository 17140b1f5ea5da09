"""A dataset to look through in a browser, on this machine only."""
