"""AirLLM (arXiv 2507.11515) as published: a coarse action by PPO, refined to a rank vector by a guided diffusion model."""
