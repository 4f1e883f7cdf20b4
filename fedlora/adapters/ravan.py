"""Ravan: the update is scale * sum_i s_i B_i H_i A_i over h heads (arXiv 2506.05568, eq. 7).

B_i and A_i are frozen and drawn from the run's seed, so they cost no bytes. A client trains H_i and s_i and sends s_i H_i;
their mean over clients is exact because all share B_i and A_i (eq. 8). s is 1 again at the start of every round (Algorithm 1,
line 6), and stays 1 with `scales = "fixed"` (Table 5).

Bases (section 3.1, Table 4): `random` and `gram-schmidt` span rank x heads dimensions; in the paper's two controls, `constant`
(every head has the same bases) and `shared-subspace` (B_i = M R_i, A_i = R_i N), all heads together span those of one. The paper
leaves the scale of its normal draws open; here columns have unit length on average (variance 1/out for B, 1/in for A, 1/rank
for R), so that all four want learning rates of the same size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedlora.adapters.base import ADAPTERS, Adapter, Selection, Tensors
from fedlora.errors import ConfigError, PayloadError
from fedlora.wire import TensorSpec


class Ravan(Adapter):
    """h heads of rank r; the rank vector counts head components, 0 <= rho <= h r (docs/ranks.md).

    `unit = "heads"` trains and sends rho / r whole heads; `"block"` also the leading square of the next head; `"svd"` trains
    all heads and sends each head's change as a truncated SVD, keeping the rest for the next round (error feedback).
    """

    summary = "multi-head update sum of s B H A with shared frozen bases; averages exactly"
    trained = "H, s"
    source = "arXiv 2506.05568"
    averages_exactly = True
    default_aggregator = "ravan"
    inits = ("random", "gram-schmidt", "constant", "shared-subspace")

    def check(self) -> None:
        super().check()
        self.heads = self.config.heads
        limit = min(self.site.in_features, self.site.out_features)
        if self.init == "gram-schmidt" and self.heads * self.rank > limit:
            raise ConfigError(
                f"adapter.heads x adapter.rank = {self.heads * self.rank} orthogonal columns do not exist at "
                f"site '{self.site.name}' ({self.site.out_features} x {self.site.in_features}): the Gram-Schmidt limit is "
                f"{limit}. Lower rank to {limit // self.heads}, take fewer heads, or use adapter.init = 'random'"
            )

    # -- shapes and values -------------------------------------------------------------------------------------------

    @property
    def cap(self) -> int:
        return self.heads * self.rank

    @property
    def unit(self) -> int:
        return self.rank if self.config.unit == "heads" else 1

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"H": (self.heads, self.rank, self.rank)}

    @property
    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"H": (self.heads, self.rank, self.rank), "s": (self.heads,)}
        return shapes if self.config.scales == "trained" else {"H": shapes["H"]}

    def buffers(self) -> Tensors:
        if self._buffers is None:
            b, a = self._bases()
            self._buffers = {"B": b.contiguous(), "A": a.contiguous()}
        return self._buffers

    def _bases(self) -> tuple[Tensor, Tensor]:
        """Return all heads' B side by side, `[out, heads x rank]`, and all their A one below the other, `[heads x rank, in]`."""
        out, width, r = self.site.out_features, self.site.in_features, self.rank
        drawn = r if self.init in ("constant", "shared-subspace") else self.heads * r
        b = torch.randn(out, drawn, generator=self.generator("B"))
        a = torch.randn(drawn, width, generator=self.generator("A"))
        if self.init == "gram-schmidt":
            # QR is Gram-Schmidt up to the columns' signs; float64 keeps every machine's answer the same to float32.
            return torch.linalg.qr(b.double()).Q.float(), torch.linalg.qr(a.T.double()).Q.T.float()
        b, a = b / out**0.5, a / width**0.5
        if self.init == "constant":
            return b.repeat(1, self.heads), a.repeat(self.heads, 1)
        if self.init == "shared-subspace":
            turns = torch.randn(self.heads, r, r, generator=self.generator("R")) / r**0.5  # invertible with probability 1
            return torch.einsum("oq,hqr->ohr", b, turns).flatten(1), torch.einsum("hqr,rw->hqw", turns, a).flatten(0, 1)
        return b, a

    def init_state(self, generation: int = 0) -> Tensors:
        return {"H": torch.zeros(self.state_shapes["H"])}

    def params(self, state: Tensors) -> Tensors:
        scales = torch.ones(self.heads, dtype=state["H"].dtype)
        return {"H": state["H"], "s": scales} if "s" in self.param_shapes else {"H": state["H"]}

    def state(self, params: Tensors) -> Tensors:
        return {"H": self._core(params)}

    def _core(self, params: Tensors) -> Tensor:
        """Return s H of every head, leading axes (clients) kept; H where s is fixed at 1."""
        return params["s"][..., None, None] * params["H"] if "s" in params else params["H"]

    def add_to(self, y: Tensor, x: Tensor, params: Tensors, buffers: Tensors) -> Tensor:
        clients, n, _ = x.shape
        core = self._core(params)
        z = torch.nn.functional.linear(x, buffers["A"]).view(clients, n, self.heads, self.rank).transpose(1, 2)
        z = torch.matmul(z, core.transpose(2, 3)).transpose(1, 2).reshape(clients, n, self.cap)
        return y + self.scale * torch.nn.functional.linear(z, buffers["B"])

    def factors(self, state: Tensors) -> tuple[Tensor, Tensor]:
        core, buffers = state["H"], self.buffers()
        b = buffers["B"].to(core.dtype).view(-1, self.heads, self.rank)
        return self.scale * torch.einsum("ohq,hqr->ohr", b, core).flatten(1), buffers["A"].to(core.dtype)

    # -- ranks -------------------------------------------------------------------------------------------------------

    def select(self, rho: int, scores: Tensor | None = None) -> Selection:
        rho = self.snap(rho)
        if self.config.unit == "svd":
            return Selection(rho, torch.arange(self.heads))
        order = torch.arange(self.heads) if scores is None else torch.argsort(scores, descending=True, stable=True)
        return Selection(rho, order[: -(-rho // self.rank)])

    def state_masks(self, selection: Selection) -> Tensors:
        mask = torch.zeros(self.state_shapes["H"], dtype=torch.bool)
        if self.config.unit == "svd":
            for head, rank in enumerate(self._head_ranks(selection.rho)):
                mask[head] = rank > 0
            return {"H": mask}
        full, part = divmod(selection.rho, self.rank)
        mask[selection.heads[:full]] = True
        if part:
            mask[selection.heads[full], :part, :part] = True
        return {"H": mask}

    def param_masks(self, selection: Selection) -> Tensors:
        if self.config.unit == "svd":  # the rank bounds what is sent, not what is trained
            return {name: torch.full(shape, selection.rho > 0) for name, shape in self.param_shapes.items()}
        heads = torch.zeros(self.heads, dtype=torch.bool)
        # A head of which only a block trains keeps s at 1: s would move the rest of the head as well.
        heads[selection.heads[: selection.rho // self.rank]] = True
        masks = {"H": self.state_masks(selection)["H"], "s": heads}
        return {name: masks[name] for name in self.param_shapes}

    def head_scores(self, state: Tensors, grads: Tensors | None, rng: np.random.Generator) -> Tensor | None:
        ties = rng.random(self.heads)
        if self.config.score == "random":
            return torch.from_numpy(ties)
        source = state["H"] if self.config.score == "weight" or grads is None else grads["H"]
        norms = source.flatten(1).norm(dim=1).cpu().double().numpy()
        ranking = np.lexsort((ties, norms))  # in round 1 every H is zero: clients then differ by their ties
        scores = np.empty(self.heads)
        scores[ranking] = np.arange(self.heads)
        return torch.from_numpy(scores)

    # -- payload -----------------------------------------------------------------------------------------------------

    def spec(self, rho: int) -> dict[str, TensorSpec]:
        rho, r = self.snap(rho), self.rank
        if rho == 0:
            return {}
        if self.config.unit == "svd":
            spec: dict[str, TensorSpec] = {}
            for head, k in enumerate(self._head_ranks(rho)):
                if k and self._dense(k):
                    spec[f"H{head}"] = TensorSpec((r, r))
                elif k:
                    spec |= {f"U{head}": TensorSpec((r, k)), f"S{head}": TensorSpec((k,)), f"V{head}": TensorSpec((k, r))}
            return spec
        full, part = divmod(rho, r)
        spec = {"heads": TensorSpec((full + bool(part),), index=True)}
        if full:
            spec["H"] = TensorSpec((full, r, r))
        if part:
            spec["block"] = TensorSpec((part, part))
        return spec

    def slice(self, state: Tensors, selection: Selection) -> Tensors:
        if selection.rho == 0:
            return {}
        if self.config.unit == "svd":
            return self._compress(state["H"], selection.rho)
        full, part = divmod(selection.rho, self.rank)
        cut = {"heads": selection.heads}
        if full:
            cut["H"] = state["H"][selection.heads[:full]]
        if part:
            cut["block"] = state["H"][selection.heads[full], :part, :part]
        return cut

    def place(self, tensors: Tensors, rho: int, received: Tensors) -> tuple[Tensors, Tensors]:
        self.check_payload(tensors, rho)
        selection = self.selection_of(tensors, rho)
        value = received["H"].clone()
        if self.config.unit == "svd":
            value += self._expand(tensors).to(value)
        elif tensors:
            full, part = divmod(selection.rho, self.rank)
            if full:
                value[selection.heads[:full]] = tensors["H"].to(value)
            if part:
                value[selection.heads[full], :part, :part] = tensors["block"].to(value)
        return {"H": value}, self.state_masks(selection)

    def selection_of(self, tensors: Tensors, rho: int) -> Selection:
        if self.config.unit == "svd" or not tensors:
            return self.select(rho)
        heads = tensors["heads"]
        if bool(((heads < 0) | (heads >= self.heads)).any()) or len(heads.unique()) != len(heads):
            raise PayloadError("schema", f"site '{self.site.name}' names heads {heads.tolist()} of {self.heads}")
        return Selection(self.snap(rho), heads)

    def upload(self, state: Tensors, received: Tensors, kept: Tensors, selection: Selection) -> tuple[Tensors, Tensors]:
        if self.config.unit != "svd":
            return self.slice(state, selection), {}
        change = state["H"] - received["H"]
        if kept:
            change = change + kept["H"]
        sent = self._compress(change, selection.rho)
        return sent, {"H": change - self._expand(sent)}

    # -- unit = svd --------------------------------------------------------------------------------------------------

    def _head_ranks(self, rho: int) -> list[int]:
        """Spread rho over the heads as evenly as it goes, the first heads taking the remainder."""
        each, more = divmod(rho, self.heads)
        return [each + (head < more) for head in range(self.heads)]

    def _dense(self, k: int) -> bool:
        return 2 * self.rank * k + k >= self.rank**2

    def _compress(self, change: Tensor, rho: int) -> Tensors:
        u, s, v = torch.linalg.svd(change)
        sent: Tensors = {}
        for head, k in enumerate(self._head_ranks(rho)):
            if k and self._dense(k):
                sent[f"H{head}"] = change[head]
            elif k:
                sent |= {f"U{head}": u[head, :, :k], f"S{head}": s[head, :k], f"V{head}": v[head, :k]}
        return sent

    def _expand(self, tensors: Tensors) -> Tensor:
        first = next(iter(tensors.values()), torch.zeros(0))
        change = torch.zeros(self.state_shapes["H"], dtype=first.dtype)
        for head in range(self.heads):
            if f"H{head}" in tensors:
                change[head] = tensors[f"H{head}"]
            elif f"U{head}" in tensors:
                change[head] = (tensors[f"U{head}"] * tensors[f"S{head}"]) @ tensors[f"V{head}"]
        return change


ADAPTERS.add("ravan", Ravan, Ravan.summary)
