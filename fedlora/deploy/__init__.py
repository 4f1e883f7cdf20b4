"""Real deployments: Flower's SuperLink and SuperNodes behind the same round, set up, started and watched."""
