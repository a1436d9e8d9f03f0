"""WeChat's message push and its API: what the channels of official accounts and mini-programs share."""
