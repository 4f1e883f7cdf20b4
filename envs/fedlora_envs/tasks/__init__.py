"""What stands behind the rank environments: real fine-tuning, or a response model fitted to it; arrays over parallel episodes."""
