-- Legs of a transaction that are still held. Params: $1 transaction id uuid. Returns reservation id and purpose.
SELECT reservation_id, purpose FROM credit_reservations WHERE transfer_id = $1 AND status = 'held'
