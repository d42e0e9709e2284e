"""One backward pass for activation gradients only, then norms and weighted sums layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipbench.per_sample.derived import Entangled, entangled, linear_to_parameters, pull_back
from clipbench.per_sample.fallback import SlowGradients, warn_slow
from clipbench.per_sample.frozen import is_frozen
from clipbench.per_sample.graph import packed, trace, trace_packed
from clipbench.per_sample.heap import keep_freed_memory
from clipbench.per_sample.joint import joint_norms, shared
from clipbench.per_sample.layout import SampleWeights
from clipbench.per_sample.mixing import refuse_mixed, suspicious
from clipbench.per_sample.placement import Placement
from clipbench.per_sample.rules import Use
from clipbench.per_sample.total import Part, total_norms
from clipbench.per_sample.traces import OWN, Known, Reading, Trace


class SampleGradients:
    """Per-sample gradients of one batch in factored form: every use has its δ."""

    def __init__(self, losses: Tensor, found: Trace, one_by_one: bool = False) -> None:
        self.losses = losses
        self.one_by_one = one_by_one  # through sub-graphs: what is there need not be linear
        self.finite = False  # whether all norms are known to be
        self.uses = found.uses
        self.slow = SlowGradients(losses, list(found.slow.values()), OWN in found.why.values()) if found.slow else None
        replay = found.replay
        self.shared: list[list[Reading]] = []
        self.entangled: list[Entangled] = []
        if replay is None or found.slow or len(found.uses) != len(replay.steps):
            self._join(found)
        elif replay.shared is not None:
            self.shared = [[(self.uses[index], role) for index, role in group] for group in replay.shared]
        else:
            self._join(found)
            if not self.entangled:
                number = {id(use): index for index, use in enumerate(self.uses)}
                replay.shared = [[(number[id(use)], role) for use, role in group] for group in self.shared]
        self.joint = {use.slots[role] for group in self.readings() for use, role in group}
        self.derived = [root for group in self.entangled for root in group.derived]
        self.below = {key: param for group in self.entangled for key, param in group.params.items()}

    def readings(self) -> list[Sequence[Reading]]:
        """Groups of readings that are not looked at one by one."""
        return [*self.shared, *(group.readings for group in self.entangled)]

    def _join(self, found: Trace) -> None:
        """Find the groups."""
        self.entangled = entangled(found)
        apart = {use.slots[role] for group in self.entangled for use, role in group.readings}
        readings = [(use, role) for use in self.uses for role, slot in use.slots.items() if slot not in apart]
        self.shared = shared(readings)

    def norms(self) -> Tensor:
        """‖g_k‖₂ over all parameters together, (n,)."""
        parts = [Part(partial(joint_norms, group), uses_of(group)) for group in self.shared]
        parts += [Part(group.norms, uses_of(group.readings)) for group in self.entangled]
        for use in self.uses:
            roles: Collection[str] = use.slots
            if self.joint:
                roles = [role for role, slot in use.slots.items() if slot not in self.joint]
            if roles:
                parts.append(Part(partial(use.norms, roles), [use]))
        if self.slow is not None:
            parts.append(Part(self.slow.norms, None))
        norms, self.finite = total_norms(parts, self.losses)
        return norms

    def accumulate(self, gamma: Tensor, keep: Tensor | None) -> None:
        """Add Σ_k γ_k g_k to `.grad`. Samples that `keep` (n,) leaves out are taken out, whatever they hold."""
        weights = SampleWeights(gamma)
        done: set[Reading] = set()
        for group in self.entangled:
            if self.one_by_one or group.own_code:
                group.add_weighted(gamma, keep)
                done.update(group.readings)
        self.shared, self.entangled = [], []
        while self.uses:
            use = self.uses.pop()
            if keep is not None:
                use.drop(keep)
            for role, gradient in use.weighted(weights).items():
                if (use, role) not in done:
                    use.slots[role].add(gradient)
        pull_back(self.derived, list(self.below.values()), keep)
        if self.slow is not None:
            for param, gradient in zip(self.slow.params, self.slow.weighted(gamma, keep), strict=True):
                param.grad = gradient if param.grad is None else param.grad.add_(gradient)


def uses_of(group: Sequence[Reading]) -> list[Use]:
    """The uses of some readings, each once."""
    return list({id(use): use for use, _ in group}.values())


class PerSampleGradients:
    """Collects `SampleGradients` for a model; remembers what is known of layouts and what was warned of."""

    def __init__(self, model: nn.Module) -> None:
        keep_freed_memory()
        self.model = model
        self._params: dict[int, nn.Parameter] = {}
        self._placement = Placement()
        self._warned: set[int] = set()
        self._packed = False
        self._odd = False  # whether hooks, which no graph shows, may not be linear: rows of data are no sample's, …
        self._known = Known()

    def __reduce__(self) -> tuple[type[PerSampleGradients], tuple[nn.Module]]:
        """Copies, pickled ones too, learn anew: what was learnt is of these parameters and of torch's own types."""
        return type(self), (self.model,)

    def collect(self, losses: Tensor, retain_graph: bool = False) -> SampleGradients:
        """Run the backward pass to the outputs of all layers. ValueError for BatchNorm in training, not frozen."""
        self._refuse_batch_statistics()
        self._params = {id(param): param for param in self.model.parameters()}  # a state loaded may bring others
        found = self._trace(losses, retain_graph)
        if found.slow.keys() - self._warned:
            self._warned |= found.slow.keys()
            warn_slow(found.why, self.model, losses.shape[0])
        return SampleGradients(losses, found, self._odd)

    def _trace(self, losses: Tensor, retain_graph: bool) -> Trace:
        """All uses with layouts and δ. Nodes whose rows are no samples' are passed on, for what reads their outputs."""
        suspect: bool | None = None
        others = bool(self._known.passed or self._known.single)
        while True:
            found = (trace_packed if self._packed else trace)(losses, self._params, self._known)
            before = None if found.replay is not None else self._gradients()
            new, mixed = self._placement.place(losses, found, retain_graph or bool(suspect))
            if before is not None:
                self._refuse_hidden(before)
            self._packed = self._packed or (new and packed(found))
            self._odd = self._odd or (self._placement.hooks and not linear_to_parameters(found))
            if not mixed:
                if not suspect or self._may_pass(found, others):
                    return found
                suspect, others = None, False
                continue
            if suspect is None:
                suspect = suspicious(mixed, found.uses, len(losses))
            self._odd = self._odd or any(use.shows_samples and len(losses) in use.lead for use in mixed)
            self._known.passed |= {found.key(use) for use in mixed}

    def _may_pass(self, found: Trace, others: bool) -> bool:
        """ValueError where samples are mixed (see `mixing`); what is known is forgotten then.

        False if it may come from `others`, earlier graphs in which nodes like these played another part.
        """
        try:
            refuse_mixed(found.uses, self._params)
        except ValueError:
            self._known.forget()
            if not others:
                raise
            return False
        return True

    def _gradients(self) -> list[tuple[Tensor | None, int]]:
        """Every parameter's `.grad`, and how often it was written to."""
        return [(p.grad, 0 if p.grad is None else p.grad._version) for p in self._params.values()]

    def _refuse_hidden(self, before: Sequence[tuple[Tensor | None, int]]) -> None:
        """Raise ValueError where a backward pass that goes to layers' outputs alone has written gradients."""
        for (name, param), (old, version) in zip(self.model.named_parameters(), before, strict=True):
            now = param.grad
            if now is not old or (now is not None and now._version != version):
                param.grad = old
                raise ValueError(
                    f"losses must not pass through functions that hide layers, got one whose backward adds to the "
                    f"gradient of {name} by a backward pass of its own (as checkpoint(use_reentrant=True) does); give "
                    "it the parameters as arguments, or use torch.utils.checkpoint.checkpoint(…, use_reentrant=False)"
                )

    def _refuse_batch_statistics(self) -> None:
        for module in self.model.modules():
            over_batch = isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats)
            if over_batch and not is_frozen(module):
                name = next(name for name, other in self.model.named_modules() if other is module)
                raise ValueError(
                    f"model must not normalise over the batch, got {type(module).__name__} '{name}' in training "
                    "mode: it makes every loss depend on every sample; put it in eval() mode, use GroupNorm, or take "
                    "its statistics as constants, by PerSampleClipper(…, batch_norm='frozen')"
                )
