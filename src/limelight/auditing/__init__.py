"""Auditing finished answers: grounding scores without generating anything."""
