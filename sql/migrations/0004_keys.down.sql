-- Takes all API keys away with what was to be recorded of them; only the root key opens the server then.
DROP TABLE pending_entries, api_key_revision, api_keys;
DROP FUNCTION pending_entries_grew, api_keys_changed;
