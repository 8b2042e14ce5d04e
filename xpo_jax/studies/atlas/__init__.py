"""A paper's claim as a table: cells to run, predictions, verdicts, pages."""
