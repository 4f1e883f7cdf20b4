"""airllm-plus: one diffusion policy shared by all sites of all models, trained by policy gradients through its own chain."""
