-- Read rules that changed, with their versions as JSON. Params: $1 the revision beyond which bigint, $2 only the living rule of
-- this name text, or null for all, those taken away included. Returns them by revision.
SELECT r.rule_id, r.name, r.description, r.champion, r.challenger, r.settings, r.trial, r.revision, r.created_at,
       r.created_by, r.changed_at, r.deleted_at,
       (SELECT json_agg(json_build_object('name', v.name, 'expression', v.expression, 'created_at', v.created_at,
                                          'created_by', v.created_by, 'championed_at', v.championed_at)
                        ORDER BY v.created_at, v.name)
        FROM rule_versions AS v WHERE v.rule_id = r.rule_id)::text AS versions
FROM rules AS r
WHERE r.revision > $1 AND ($2::text IS NULL OR (r.name = $2 AND r.deleted_at IS NULL))
ORDER BY r.revision
