"""What telephone systems call us with, whoever made them: a vendor is data (preset.py), not code."""
