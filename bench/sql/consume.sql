-- Take credits from one account and link the entry to the account's chain: one statement, one transaction.
--
-- Params:  $1 tenant_id text, $2 amount bigint, $3 transaction_id uuid, $4 created_at timestamptz,
--          $5 idempotency_key text
-- Returns: balance bigint, version bigint; no row when the account is missing or holds too little.
-- Faults:  unique violation of entries_idempotency_key when the key was used before; nothing is changed then.
-- The expressions of SET see the row as it is once the lock is held, so the link is right under concurrency.
-- Numbers have a fixed width in the hashed bytes and the tenant stands last, so no two records share them.
WITH debited AS (
    UPDATE accounts
    SET balance = balance - $2,
        version = version + 1,
        previous_hash = head_hash,
        head_hash = sha256(
            head_hash || int8send(version + 1) || int8send($2) || int8send(balance - $2) || uuid_send($3)
            || timestamptz_send($4) || convert_to(tenant_id, 'UTF8')
        )
    WHERE tenant_id = $1 AND balance >= $2
    RETURNING balance, version, previous_hash, head_hash
)
INSERT INTO entries (
    tenant_id, version, amount, balance, transaction_id, created_at, idempotency_key, previous_hash, hash
)
SELECT $1, version, $2, balance, $3, $4, $5, previous_hash, head_hash
FROM debited
RETURNING balance, version
