"""Connections, scripts, queries and migrations: what the services need of Redis and Postgres."""
