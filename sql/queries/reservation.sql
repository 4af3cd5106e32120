-- One reservation. Params: $1 id uuid.
SELECT reservation_id, tenant_id, amount, committed, status, purpose, created_at, expires_at, closed_at, description, metadata
FROM credit_reservations WHERE reservation_id = $1
