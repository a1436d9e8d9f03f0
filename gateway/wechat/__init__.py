"""WeChat, for the official account and the mini-program: what it pushes to us, and what we ask its server."""
