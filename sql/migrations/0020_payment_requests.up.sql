-- Private records know the request that made them: another request under the same key does not share its record.
-- service: credits
-- migrate: compatible
--
-- Two top-ups with one idempotency key, one card and two amounts shared a record: the one that was refused could destroy
-- what the entry of the other names. A release before leaves the column null.

ALTER TABLE private_records ADD COLUMN fingerprint text;  -- keyed hash of the request
