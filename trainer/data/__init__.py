"""Everything read and written before training: captures, rows, splits, rankings."""
