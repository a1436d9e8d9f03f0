"""One module per payload family: a pure function from a raw message to a draft of its envelope."""
