-- Takes all API keys away with what was to be recorded of them; only the root key opens the server then.
DROP TRIGGER account_rates_changed ON credit_accounts;
DROP INDEX credit_accounts_rated;
DROP TABLE pending_entries, access_revision, api_keys;
DROP FUNCTION pending_entries_grew, api_keys_changed, account_rates_changed;
