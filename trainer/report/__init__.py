"""Findings, the figures drawn of them and the page that shows them."""
