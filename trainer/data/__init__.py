"""What is read and written before training: captures, rows, splits, rankings."""
