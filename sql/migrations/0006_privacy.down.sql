-- Takes all payment and personal data away for good; the commitments in the chain stay.
DROP TABLE private_erasures, private_records, private_keys;
