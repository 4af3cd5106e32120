"""Which instance should take the call: instances, their health and load, and the choice between them."""
