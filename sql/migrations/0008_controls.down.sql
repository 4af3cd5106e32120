-- Take away what 0008_controls.up.sql made. What it kept of quotas, alerts, verifications and retired keys is lost.
DROP FUNCTION put_out_message;
DROP TABLE replicas, log_keys, ledger_verifications, credit_alerts;
ALTER TABLE credit_reservations DROP COLUMN counted;
ALTER TABLE credit_accounts DROP COLUMN controls;
