"""The run file as one typed tree: read from TOML, overridden by `key=value`, checked before any work starts.

Every key has its meaning and unit beside it here; the reference in the documentation is generated from this file. Names of
methods, models and data sets are plain strings here and are checked against the registries by `fedlora.runs.prepare`, so
that reading a run file costs no heavy import.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedlora.errors import ConfigError, reason
from fedlora.key_errors import dotted_keys, explain
from fedlora.methods import with_method

Section = TypeVar("Section", bound=BaseModel)
Precision = Literal["auto", "fp32", "bf16"]
WireDtype = Literal["fp32", "bf16", "fp16", "int8"]

QUICKSTART = Path(__file__).with_name("quickstart.toml")
"""The run file that is shipped."""


class ConfigSection(BaseModel):
    """A part of the tree: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(ConfigSection):
    """The frozen backbone."""

    name: str = Field("minilm-l6", min_length=1, description="packaged short name, Hugging Face hub name, or local model folder")
    revision: str | None = Field(None, description="hub revision (branch, tag or commit)")
    task: Literal["auto", "classification", "causal-lm"] = Field("auto", description="auto follows the data set")
    image_size: int | None = Field(None, ge=8, description="side of the square input image, pixels; default: the model's own")


class DataConfig(ConfigSection):
    """Where examples come from and how they are spread over clients."""

    name: str = Field(
        "trec-6", min_length=1, description="packaged short name, or path of a CSV, JSONL, Parquet file or `datasets` folder"
    )
    text_column: str = Field("text", description="column holding the text (own data)")
    label_column: str = Field("label", description="column holding the label (own data)")
    image_column: str = Field("image", description="column holding the image (own `datasets` folder)")
    natural_column: str | None = Field(None, description="column naming the client an example belongs to (partition natural)")
    partition: Literal["iid", "dirichlet", "natural", "shards"] = Field("dirichlet", description="how labels are spread")
    alpha: float = Field(0.3, gt=0, description="Dirichlet concentration; smaller is more skewed")
    shards_per_client: int = Field(2, ge=1, description="label shards dealt to each client (partition shards)")
    max_length: int = Field(64, ge=4, description="longest text, tokens; longer ones are cut (causal LM: block length)")
    max_examples: int | None = Field(None, ge=1, description="use at most this many training examples, chosen by seed")
    max_test_examples: int | None = Field(None, ge=1, description="evaluate on at most this many test examples")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share held out for the server where the set has no test split")
    client_test_fraction: float = Field(0.1, ge=0, lt=1, description="share of each client's examples that it never trains on")


class AdapterConfig(ConfigSection):
    """The trainable parameterisation at the adapted sites."""

    method: str = Field("ravan", description="registered adapter: see `fedlora methods`")
    rank: int = Field(32, description="rank cap per site (ravan: per head)")
    heads: int = Field(4, ge=1, description="ravan: number of heads")
    alpha: float | None = Field(None, gt=0, description="scale is alpha / rank, fixed by the cap; default: alpha = rank")
    init: str = Field(
        "auto", description="initialisation of the first factors or bases (docs/methods.md); auto: the method's own"
    )
    targets: list[str] = Field(["auto"], description="name patterns of adapted projections; auto: attention query and value")
    unit: Literal["heads", "block", "svd"] = Field("heads", description="ravan: what one unit of the rank vector means")
    score: Literal["random", "weight", "gradient"] = Field("random", description="ravan: how a client picks its heads")
    scales: Literal["trained", "fixed"] = Field("trained", description="ravan: the heads' scales s; fixed: they stay 1")
    start_examples: int = Field(
        50, ge=1, description="fed-sb: training examples that the server itself has, on which the first gradient is taken"
    )


class AggregatorConfig(ConfigSection):
    """How the replies of a round become the next global adapter."""

    method: str = Field("auto", description="registered aggregator: see `fedlora methods`; auto is the adapter's own")
    weighting: Literal["auto", "uniform", "examples"] = Field("auto", description="client weights; auto is the method's own")
    options: dict[str, Any] = Field({}, description="arguments of the aggregator")


class ServerConfig(ConfigSection):
    """How the server goes from the old adapter towards the aggregate, by the rules of Flower's strategies of these names."""

    optimizer: Literal["none", "fedavgm", "fedadam", "fedyogi"] = Field("none", description="none: take the aggregate as it is")
    lr: float | None = Field(None, gt=0, description="step size; default: 1 for fedavgm, 0.1 for fedadam, 0.01 for fedyogi")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step that is kept (beta 1)")
    second_momentum: float = Field(0.99, ge=0, lt=1, description="share of the last second moment that is kept (beta 2)")
    tau: float = Field(1e-3, gt=0, description="floor of the adaptive step's denominator")


class TrainingConfig(ConfigSection):
    """Local training at a client. Give `steps` or `epochs`, not both."""

    steps: int | None = Field(None, ge=1, description="local mini-batches per round (default 20)")
    epochs: float | None = Field(None, gt=0, description="local passes over the client's training part")
    batch_size: int = Field(16, ge=1, description="examples per mini-batch")
    lr: float = Field(5e-3, gt=0, description="learning rate of the adapter")
    head_lr: float | None = Field(None, gt=0, description="learning rate of the task head; default: lr")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="fresh state every round")
    weight_decay: float = Field(0.0, ge=0, description="decoupled for adamw, L2 for adam and sgd")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="decay over the whole run")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the run with rising learning rate")
    clip: float = Field(1.0, ge=0, description="gradient norm limit per client; 0 switches it off")
    proximal: float = Field(0.0, ge=0, description="FedProx: mu of the penalty mu/2 |w - w0|^2, w0 being what was received")
    length_bucketing: bool = Field(True, description="batches of similar length, so that little is spent on padding")
    precision: Precision = Field("fp32", description="bf16 runs under autocast; auto: bf16 where the hardware has it")

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            given = {key for key in ("steps", "epochs") if values.get(key) is not None}
            if len(given) == 2:
                raise ValueError("give either training.steps or training.epochs, not both")
            if not given:
                return {**values, "steps": 20}
        return values


class WireConfig(ConfigSection):
    """What crosses the link."""

    dtype: WireDtype = Field("fp32", description="number format of payload tensors; int8 has one scale per row")
    downlink: Literal["broadcast", "sliced"] = Field("broadcast", description="whole adapter, or each client's own prefix")


class WorldConfig(ConfigSection):
    """The simulated radio world that a round is timed in; without a name, messages cost nothing."""

    name: str | None = Field(None, description="registered world: see `fedlora methods`; unset: no radio, no virtual time")
    options: dict[str, Any] = Field({}, description="what to change in the world: its keys are printed by `fedlora world NAME`")


class PolicyConfig(ConfigSection):
    """Who chooses the rank vectors."""

    name: str = Field("full", description="registered policy: see `fedlora methods`")
    options: dict[str, Any] = Field({}, description="arguments of the policy")


class EvaluationConfig(ConfigSection):
    """When and on what the global adapter is measured."""

    every: int = Field(1, ge=1, description="rounds between evaluations on the server's test set (the last is always measured)")
    batch_size: int = Field(256, ge=1, description="examples per evaluation batch")
    clients: bool = Field(True, description="clients also measure the received adapter on their own held-out part")


class OutputConfig(ConfigSection):
    """What the run folder keeps."""

    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    tensorboard: bool = Field(True, description="write TensorBoard events")
    log: list[Literal["wandb", "mlflow"]] = Field([], description="also send each round to these (extras `wandb`, `mlflow`)")


class RayConfig(ConfigSection):
    """Flower's own simulation engine (engine = "ray"): where it computes, and what one simulated client gets of it.

    As many clients train at a time as fit, each in a process of its own that loads the model once; Flower itself drives at most
    32 of them, and no more than four above this machine's cores.
    """

    address: str | None = Field(None, description="cluster: host:port, ray://host:port or auto; default: a Ray of its own, here")
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a Ray of its own; default: all")
    num_gpus: int | None = Field(None, ge=0, description="GPUs of a Ray of its own; default: all")
    object_store_mb: int | None = Field(
        None, ge=80, description="shared memory for messages on their way, MB (a Ray of its own); default: 30 % of what is free"
    )
    client_cpus: float = Field(1.0, gt=0, description="CPUs per simulated client")
    client_gpus: float = Field(0.0, ge=0, description="GPUs per simulated client, for example 0.25; 0: clients train on CPUs")

    @model_validator(mode="after")
    def _own_or_cluster(self) -> RayConfig:
        for key in ("num_cpus", "num_gpus", "object_store_mb"):
            if self.address is not None and getattr(self, key) is not None:
                raise ValueError(f"ray.{key} sizes a Ray of its own, and ray.address names a cluster: leave one of them out")
        if self.client_gpus > 1 and self.client_gpus != int(self.client_gpus):
            raise ValueError(f"ray.client_gpus = {self.client_gpus}: Ray shares out parts of one GPU, or whole ones")
        return self


class DeploymentConfig(ConfigSection):
    """How real nodes are worked with (engine = "deployment")."""

    links: Literal["auto", "measured", "simulated"] = Field(
        "auto",
        description="links that policies see: measured by nodes, or simulated by the world; auto: simulated if there is one",
    )
    round_timeout_s: float = Field(600.0, gt=0, description="real seconds after which a round ends without those who are missing")
    start_timeout_s: float = Field(600.0, gt=0, description="real seconds to wait for the run's clients before the first round")
    least_nodes: int = Field(1, ge=1, description="fewest nodes to start with once that time is over")
    poll_s: float = Field(0.2, gt=0, description="seconds between two looks for replies")
    band_mhz: float = Field(5.0, gt=0, description="band by which a measured rate becomes an SNR; trained policies look at SNRs")
    max_payload_mb: float = Field(64.0, gt=0, description="largest message accepted, megabytes")


class RunConfig(ConfigSection):
    """One run: what `fedlora simulate` reads, resolves and stores in the run folder."""

    seed: int = Field(0, ge=0, description="root of every stream of randomness")
    rounds: int = Field(10, ge=1, description="federated rounds")
    clients: int = Field(20, ge=1, description="clients in the federation")
    clients_per_round: int = Field(5, ge=1, description="clients drawn each round, uniformly without replacement")
    engine: Literal["batched", "ray", "deployment"] = Field(
        "batched", description="batched: all clients at once, in process; ray: Flower's simulation; deployment: real nodes"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    method: str = Field("", description="sets adapter and aggregator together: see `fedlora methods`; empty: both by hand")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    adapter: AdapterConfig = AdapterConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    training: TrainingConfig = TrainingConfig(steps=20)
    server: ServerConfig = ServerConfig()
    wire: WireConfig = WireConfig()
    world: WorldConfig = WorldConfig()
    policy: PolicyConfig = PolicyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: OutputConfig = OutputConfig()
    ray: RayConfig = RayConfig()
    deployment: DeploymentConfig = DeploymentConfig()

    @model_validator(mode="before")
    @classmethod
    def _method(cls, values: Any) -> Any:
        return with_method(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.clients_per_round > self.clients:
            raise ValueError(
                f"clients_per_round = {self.clients_per_round} is more than clients = {self.clients}: "
                "lower the first or raise the other"
            )
        if self.engine == "ray" and self.device.startswith("cuda"):
            if ":" in self.device:
                raise ValueError(f"device = '{self.device}': Ray gives every client its GPU. Write device = 'cuda', or 'auto'")
            if not self.ray.client_gpus:
                raise ValueError("device = 'cuda' gives clients a GPU only with ray.client_gpus above 0, for example 0.25")
        if self.adapter.rank < 1:
            raise ValueError(f"adapter.rank = {self.adapter.rank} trains nothing; the smallest rank is 1")
        return self

    def to_toml(self) -> str:
        """Return the whole tree as TOML; keys that are unset are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    base: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Read a run file and apply `key=value` overrides.

    Args:
        path: TOML file, or None to start from `base`.
        overrides: Strings such as "adapter.rank=8"; the value is read as TOML, and as plain text where that fails.
        base: Tree to start from where no file is given; default: all defaults.
        changes: More overrides, as values: {"training.lr": 0.001}, or in sections as the file has them.

    Raises:
        ConfigError: Unreadable file, unknown key or bad value; names the nearest valid one.
    """
    tree: dict[str, Any] = read_toml(Path(path)) if path is not None else _copy(base or {})
    for key, value in _leaves(changes or {}):
        _assign(tree, key, value)
    return parse_config(read_overrides(overrides, tree))


def read_overrides(
    overrides: Iterable[str], tree: dict[str, Any] | None = None, example: str = "training.lr=0.001"
) -> dict[str, Any]:
    """Return `tree` (default: an empty one) with `key=value` strings written into it; keys are checked by `parse_section`.

    Raises:
        ConfigError: A string that is no override (`example` shows one), or a key that lies under a value.
    """
    tree = {} if tree is None else tree
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"'{text}' is not an override. Write key=value, for example {example}")
        _assign(tree, key.strip(), _value(value.strip()))
    return tree


def parse_config(tree: Mapping[str, Any]) -> RunConfig:
    """Check a plain tree and return it typed (errors as in `load_config`)."""
    return parse_section(RunConfig, tree)


def parse_section(section: type[Section], tree: Mapping[str, Any], prefix: str = "") -> Section:
    """Check a plain tree against any model of this kind; `prefix` leads the key names in errors ("world.options.")."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, section, prefix)) from None


def read_toml(path: Path, kind: str = "run file", otherwise: str = "the quickstart") -> dict[str, Any]:
    """Return a TOML file as a plain tree (ConfigError where it cannot be read).

    Args:
        path: The file.
        kind: What it is, for errors.
        otherwise: What runs where no file is given, for errors.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {kind} {path}. Check the path, or leave it out to run {otherwise}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the {kind} {path} cannot be read: {reason(error)}. Give a TOML file that you may read") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the {kind} {path} is not valid TOML: {error}. Mend that line") from None


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"'{key}' cannot be set: '{parent}' is a value, not a section")
    tree[leaf] = value
    if key == "method":  # the later word counts: the file's own parts make way
        for section in ("adapter", "aggregator"):
            if isinstance(part := tree.get(section), dict):
                part.pop("method", None)
    # Steps and epochs exclude each other; an override replaces whichever the file had.
    other = {"steps": "epochs", "epochs": "steps"}.get(leaf)
    if parents == ["training"] and other:
        tree.pop(other, None)


def all_keys(section: type[BaseModel] = RunConfig) -> list[str]:
    """Return every key of the tree in dotted form, in the order of this file."""
    return dotted_keys(section)
