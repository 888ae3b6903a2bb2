"""The way in: where packets come from, and the rows of statistics the kernel makes of them."""
