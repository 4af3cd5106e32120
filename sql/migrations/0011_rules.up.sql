-- Rules: what they are, their versions, and what was counted and kept of their trials.
--
-- A change of a rule, its revision and its entry for the chain are one statement. A version's expression never changes. Each
-- process that evaluates a rule has a row of counts of its own for each trial, and replaces it by newer ones every few
-- seconds; the counts of the trial are the sum of the rows.

CREATE TABLE rules (
  rule_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name        text NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$'),
  description text,
  champion    text NOT NULL,                   -- version whose answers callers get
  challenger  text CHECK (challenger <> champion),  -- version that is evaluated in shadow, null for none
  settings    text NOT NULL,                   -- JSON of app.shadow.rules_definition.Settings
  trial       int NOT NULL DEFAULT 1 CHECK (trial > 0),  -- raised when other things are compared than before
  revision    bigint NOT NULL UNIQUE,          -- of all rules: replicas read what is beyond the last they saw
  created_at  timestamptz NOT NULL DEFAULT now(),
  created_by  text NOT NULL,                   -- key_id
  changed_at  timestamptz NOT NULL DEFAULT now(),
  deleted_at  timestamptz
);
CREATE UNIQUE INDEX rules_name ON rules (name) WHERE deleted_at IS NULL;

-- One row, raised in the transaction of every change, so that revisions become visible in their order.
CREATE TABLE rules_revision (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  revision  bigint NOT NULL DEFAULT 0
);
INSERT INTO rules_revision DEFAULT VALUES;

CREATE TABLE rule_versions (
  rule_id       bigint NOT NULL REFERENCES rules,
  name          text NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$'),
  expression    text NOT NULL CHECK (length(expression) BETWEEN 1 AND 4096),
  created_at    timestamptz NOT NULL DEFAULT now(),
  created_by    text NOT NULL,                 -- key_id
  championed_at timestamptz,                   -- when it first became the champion
  PRIMARY KEY (rule_id, name)
);

CREATE TABLE rule_tallies (
  rule_id  bigint NOT NULL REFERENCES rules,
  trial    int NOT NULL,
  process  text NOT NULL,                      -- made anew at every start of a server
  tally    text NOT NULL,                      -- JSON of app.shadow.rules_tally.Tally
  saved_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (rule_id, trial, process)
);

CREATE TABLE rule_samples (
  rule_id   bigint NOT NULL REFERENCES rules,
  trial     int NOT NULL,
  kind      text NOT NULL,                     -- how the answers differed
  sample_id text NOT NULL,                     -- rises with time
  sample    text NOT NULL CHECK (octet_length(sample) <= 65536),  -- JSON, masked
  PRIMARY KEY (rule_id, trial, kind, sample_id)
);

GRANT SELECT, INSERT ON rules, rule_versions TO shieldx_app;
GRANT UPDATE (description, champion, challenger, settings, trial, revision, changed_at, deleted_at) ON rules TO shieldx_app;
GRANT UPDATE (championed_at) ON rule_versions TO shieldx_app;
GRANT SELECT, UPDATE (revision) ON rules_revision TO shieldx_app;
GRANT SELECT, INSERT, UPDATE ON rule_tallies TO shieldx_app;
GRANT SELECT, INSERT, DELETE ON rule_samples TO shieldx_app;
