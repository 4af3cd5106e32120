"""Credits: balances and reservations, decided in Redis, proved in Postgres."""
