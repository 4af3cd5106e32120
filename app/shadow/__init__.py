"""Which variant a unit gets, and whether a variant is safe to ship: experiments, canaries and rules in shadow."""
