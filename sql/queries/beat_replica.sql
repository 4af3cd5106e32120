-- Date a replica, forget those that are long gone, and count the others that live.
-- Params: $1 replica text, $2 seconds that a date lasts float8. Returns others.
WITH beat AS (
  INSERT INTO replicas (replica) VALUES ($1) ON CONFLICT (replica) DO UPDATE SET seen_at = now()
), gone AS (
  DELETE FROM replicas WHERE seen_at < now() - interval '1 hour' AND replica <> $1
)
SELECT count(*) AS others FROM replicas WHERE replica <> $1 AND seen_at > now() - make_interval(secs => $2)
