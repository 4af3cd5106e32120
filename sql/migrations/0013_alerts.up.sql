-- Alerts are forgotten after 90 days (ALERTS_KEPT_DAYS in app/audit/controls.py); the entries behind them stay in the chain.
-- service: credits
-- migrate: compatible

-- Delete what is older, of the `batch` oldest alerts; returns how many. Their numbers rise with their time but for a few
-- seconds, so no index by time is needed. Runs as its owner: the server's role may not delete alerts by itself.
CREATE FUNCTION forget_alerts(batch int) RETURNS int
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
  WITH oldest AS (
    SELECT alert_no, at FROM credit_alerts ORDER BY alert_no LIMIT batch
  ), forgotten AS (
    DELETE FROM credit_alerts a USING oldest o
    WHERE a.alert_no = o.alert_no AND o.at < now() - interval '90 days'
    RETURNING a.alert_no
  )
  SELECT count(*)::int FROM forgotten
$$;

REVOKE ALL ON FUNCTION forget_alerts FROM public;
GRANT EXECUTE ON FUNCTION forget_alerts TO shieldx_app;
