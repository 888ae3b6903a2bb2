"""Complete, commented configurations, one for each role, and the broker's; `make test` loads every one of them."""
