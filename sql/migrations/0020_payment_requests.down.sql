-- Records know no request again: one that a release before made shares with each request of its key.
ALTER TABLE private_records DROP COLUMN fingerprint;
