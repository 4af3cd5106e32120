-- Units that had an outcome, for the test of the shares; and the first crossing of a rule's trial, which is kept.
-- service: shadow
-- migrate: compatible

-- Every kind that was allowed still is, so that rows need no second look and nobody waits for one.
-- squawk-ignore ban-drop-constraint
ALTER TABLE experiment_journal DROP CONSTRAINT experiment_journal_kind_check;
ALTER TABLE experiment_journal ADD CONSTRAINT experiment_journal_kind_check
  CHECK (kind IN ('event', 'unit', 'quarantine', 'exposed', 'success', 'error', 'over')) NOT VALID;

CREATE TABLE rule_crossings (
  rule_id bigint NOT NULL REFERENCES rules,
  trial   int NOT NULL,
  at      timestamptz NOT NULL DEFAULT now(),
  inputs  text NOT NULL,                       -- JSON: the counts that the evidence was computed from
  PRIMARY KEY (rule_id, trial)
);
GRANT SELECT, INSERT ON rule_crossings TO shieldx_app;
