-- Put a message out: it waits until a replica makes deliveries of it. One that waits already does not wait twice.
-- Params: $1 message id text, $2 tenant text, $3 type text, $4 body text. Returns nothing.
SELECT put_out_message($1, $2, $3, $4)
