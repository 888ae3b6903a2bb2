"""Programs for those who build botwatch; nothing here is installed with it."""
