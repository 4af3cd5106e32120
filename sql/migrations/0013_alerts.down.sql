-- Takes the function away; alerts stay.
DROP FUNCTION forget_alerts(int);
