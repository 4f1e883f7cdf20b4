"""The federated round on Flower: strategy, client, in-process grid, policies."""
