"""Rules that average what clients send, entry by entry over those that sent it: Ravan's and FedIT's."""

from __future__ import annotations

from collections.abc import Sequence

from fedlora.aggregation.base import AGGREGATORS, Aggregator, CoverageMean, GlobalState, Update, mean_head


class _Mean(Aggregator):
    mixed_ranks = True

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates = sorted(updates, key=lambda update: update.client)
        weights = self.weights(updates)
        sites, coverage = [], []
        for index, (adapter, old) in enumerate(zip(self.adapters, state.sites, strict=True)):
            mean = CoverageMean(old)
            for update, weight in zip(updates, weights, strict=True):
                sent = update.sites[index]
                if sent.keys() == old.keys() and all(sent[name].shape == tensor.shape for name, tensor in old.items()):
                    mean.add(sent, None, weight)  # the whole state as it is: nothing to put in place
                else:
                    mean.add(*adapter.place(sent, update.ranks[index], old), weight)
            merged, covered = mean.result()
            sites.append(merged)
            coverage.append(covered)
        return GlobalState(sites, mean_head(updates, weights, state.head)), coverage


class RavanMean(_Mean):
    """H_i becomes the mean of s_i H_i over the clients that trained head i (arXiv 2506.05568, eq. 8)."""

    name = "ravan"
    summary = "mean of s H per head over the clients that trained it"
    source = "arXiv 2506.05568, eq. 8"
    exact = "yes, per head over its clients"
    default_weighting = "uniform"

    def objection(self) -> str:
        if all(adapter.averages_exactly for adapter in self.adapters):
            return ""
        return "the mean of its factors is not the mean of its updates. Use 'fedavg-factors' (FedIT) or 'stack' (FLoRA)"


class FactorMean(_Mean):
    """A and B are averaged separately (FedIT, arXiv 2305.05644); mixed ranks per component over the clients that sent it."""

    name = "fedavg-factors"
    summary = "FedIT: factors averaged one by one, per component over the clients that sent it"
    source = "arXiv 2305.05644"
    exact = "no: the product of means is not the mean of products"
    default_weighting = "examples"

    def objection(self) -> str:
        exact = any(adapter.averages_exactly for adapter in self.adapters)
        return "it has no trained factors to average. Use 'ravan'" if exact else ""


AGGREGATORS.add(RavanMean.name, RavanMean, RavanMean.summary)
AGGREGATORS.add(FactorMean.name, FactorMean, FactorMean.summary)
