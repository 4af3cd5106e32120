-- Put a message out to every endpoint that wants it; a message that is out already is not put out again.
-- Params: $1 message id text, $2 tenant text, $3 type text, $4 body text. Returns the endpoints.
SELECT put_out_message($1, $2, $3, $4) AS endpoint_id
