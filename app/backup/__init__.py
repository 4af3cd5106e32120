"""Backups of the database, their restoring, and migrations between the two."""
