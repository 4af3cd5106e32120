-- Reservations that ended. Params, one element a reservation: $1 ids uuid[], $2 statuses text[], $3 committed bigint[],
-- $4 closed timestamptz[], $5 seqs bigint[]. Only an open one can end; the caller compares the count.
UPDATE credit_reservations r SET status = u.status, committed = u.committed, closed_at = u.closed_at, closed_seq = u.seq
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::timestamptz[], $5::bigint[])
  AS u (id, status, committed, closed_at, seq)
WHERE r.reservation_id = u.id AND r.status = 'held'
