-- A tenant's reservations, newest first. Params: $1 tenant text, $2 status text or null, $3 below this id uuid,
-- $4 how many int. Legs of two-phase commits are not the tenant's own.
SELECT reservation_id, tenant_id, amount, committed, status, purpose, created_at, expires_at, closed_at, description, metadata
FROM credit_reservations
WHERE tenant_id = $1 AND purpose = 'spend' AND ($2::text IS NULL OR status = $2) AND reservation_id < $3
ORDER BY reservation_id DESC LIMIT $4
