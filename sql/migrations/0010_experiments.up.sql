-- Experiments: what they are, where they stand, and what their counters were a few seconds ago.
--
-- Redis counts; these tables are what is left when Redis has forgotten. A change of an experiment, its revision and its
-- entry for the chain are one statement. Counters are replaced every few seconds, by whoever has a newer seq.

CREATE TABLE experiments (
  name       text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$'),
  definition text NOT NULL,                     -- JSON of app.shadow.definition.Definition; never changes
  state      text NOT NULL,                     -- JSON of app.shadow.definition.State
  revision   bigint NOT NULL UNIQUE,            -- of all experiments: replicas read what is beyond the last they saw
  created_at timestamptz NOT NULL DEFAULT now(),
  created_by text NOT NULL,                     -- key_id
  changed_at timestamptz NOT NULL DEFAULT now()
);

-- One row, raised in the transaction of every change, so that revisions become visible in their order.
CREATE TABLE shadow_revision (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  revision  bigint NOT NULL DEFAULT 0
);
INSERT INTO shadow_revision DEFAULT VALUES;

CREATE TABLE experiment_counters (
  name     text PRIMARY KEY REFERENCES experiments,
  seq      bigint NOT NULL DEFAULT 0,           -- how many changes the counters in Redis had seen
  totals   text NOT NULL DEFAULT '{}',          -- JSON: field of the counters to integer
  latency  text NOT NULL DEFAULT '{}',          -- JSON: field of the histogram to integer
  saved_at timestamptz NOT NULL DEFAULT now()
);

-- What Redis remembers one by one: events that were counted; units that were enrolled, quarantined, or gave the evidence of
-- successes, errors or calls over the limit what a unit may give; packed.
CREATE TABLE experiment_journal (
  id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name   text NOT NULL REFERENCES experiments,
  kind   text NOT NULL CHECK (kind IN ('event', 'unit', 'quarantine', 'success', 'error', 'over')),
  at     timestamptz NOT NULL DEFAULT now(),
  packed bytea NOT NULL CHECK (length(packed) > 0)
);
CREATE INDEX experiment_journal_name ON experiment_journal (name, id);
CREATE INDEX experiment_journal_events ON experiment_journal (at) WHERE kind = 'event';

-- The weights of Thompson sampling: a version never changes, because units were assigned with it.
CREATE TABLE experiment_weights (
  name    text NOT NULL REFERENCES experiments,
  version int NOT NULL CHECK (version > 0),
  weights text NOT NULL,                        -- JSON: probability of each variant
  at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (name, version)
);

CREATE FUNCTION experiments_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('shieldx_experiments', '');
  RETURN NULL;
END $$;
CREATE TRIGGER experiments_changed AFTER INSERT OR UPDATE ON experiments
FOR EACH STATEMENT EXECUTE FUNCTION experiments_changed();

GRANT SELECT, INSERT ON experiments, experiment_weights TO shieldx_app;
GRANT UPDATE (state, revision, changed_at) ON experiments TO shieldx_app;
GRANT SELECT, UPDATE (revision) ON shadow_revision TO shieldx_app;
GRANT SELECT, INSERT, UPDATE ON experiment_counters TO shieldx_app;
GRANT SELECT, INSERT, DELETE ON experiment_journal TO shieldx_app;
