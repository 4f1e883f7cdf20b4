"""Rules that average what clients send, entry by entry over those that sent it; and zero-padding, which averages over all."""

from __future__ import annotations

from collections.abc import Sequence

from fedlora.aggregation.base import AGGREGATORS, Aggregator, CoverageMean, GlobalState, Update, in_order, mean_head


class _Mean(Aggregator):
    mixed_ranks = True
    padded = False

    def aggregate(self, updates: Sequence[Update], state: GlobalState, round_number: int) -> tuple[GlobalState, list[float]]:
        updates = in_order(updates)
        weights = self.weights(updates)
        sites, coverage = [], []
        for index, (adapter, old) in enumerate(zip(self.at(round_number), state.sites, strict=True)):
            mean = CoverageMean(old, sum(weights) if self.padded else None)
            for update, weight in zip(updates, weights, strict=True):
                sent = update.sites[index]
                whole = adapter.snap(update.ranks[index]) == adapter.cap and sent.keys() == old.keys()
                if whole and all(sent[name].shape == tensor.shape for name, tensor in old.items()):
                    mean.add(sent, None, weight)  # the whole state as it is: nothing to put in place
                else:
                    mean.add(*adapter.place(sent, update.ranks[index], old), weight)
            merged, covered = mean.result()
            sites.append(merged)
            coverage.append(covered)
        return state.followed_by(sites, mean_head(updates, weights, state.head)), coverage


class ExactMean(_Mean):
    """The mean of what clients send, where that is the mean of their updates (FFA-LoRA, RoLoRA, Fed-SB, full)."""

    name = "mean"
    summary = "mean of what clients send, per entry over those that sent it"
    source = "FedAvg, arXiv 1602.05629"
    exact = "yes, per entry over its clients"
    default_weighting = "uniform"

    def objection(self) -> str:
        if all(adapter.averages_exactly for adapter in self.adapters):
            return ""
        return "the mean of its factors is not the mean of its updates. Use 'fedavg-factors' (FedIT) or 'stack' (FLoRA)"


class RavanMean(ExactMean):
    """H_i becomes the mean of s_i H_i over the clients that trained head i (arXiv 2506.05568, eq. 8)."""

    name = "ravan"
    summary = "mean of s H per head over the clients that trained it"
    source = "arXiv 2506.05568, eq. 8"
    exact = "yes, per head over its clients"

    def objection(self) -> str:
        headless = any("H" not in adapter.state_shapes for adapter in self.adapters)
        return super().objection() or ("it averages heads, of which there are none. Use 'mean'" if headless else "")


class FactorMean(_Mean):
    """A and B are averaged separately (FedIT, arXiv 2305.05644); mixed ranks per component over the clients that sent it.

    With FedSA-LoRA A alone is averaged, since it alone is sent.
    """

    name = "fedavg-factors"
    summary = "FedIT: factors averaged one by one, per component over the clients that sent it"
    source = "arXiv 2305.05644"
    exact = "no: the product of means is not the mean of products"
    default_weighting = "examples"

    def objection(self) -> str:
        exact = any(adapter.averages_exactly for adapter in self.adapters)
        return f"it has no trained factors to average. Use '{self.adapters[0].default_aggregator}'" if exact else ""


class ZeroPad(FactorMean):
    """Every client counts in every component: what a client of a lower rank did not send is a zero (HetLoRA's padding)."""

    name = "zero-pad"
    summary = "factors padded with zeros to the cap and averaged over all clients"
    source = "arXiv 2401.06432"
    exact = "no, and components that few clients train shrink"
    own_prefix = True
    padded = True


for _rule in (ExactMean, RavanMean, FactorMean, ZeroPad):
    AGGREGATORS.add(_rule.name, _rule, _rule.summary)
