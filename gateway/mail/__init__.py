"""Internet mail read at the level of its bytes: what the mail channels and their normalizer share."""
