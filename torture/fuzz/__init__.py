"""Requests that nobody should send: what the document allows and forbids, and what no document foresees."""
