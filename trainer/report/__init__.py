"""Findings and the page that shows them."""
