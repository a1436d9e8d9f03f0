"""Mail, as the channels and the normalizer that deal with it share it."""
