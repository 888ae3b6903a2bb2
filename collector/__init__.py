"""The server side: takes alerts from the broker, validates, de-duplicates, stores and lists them."""
