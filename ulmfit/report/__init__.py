"""The report of runs: one page of HTML that loads nothing. It is read from their files, and from model and data."""
