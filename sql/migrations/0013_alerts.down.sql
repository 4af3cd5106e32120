DROP FUNCTION forget_alerts(int);
