"""Load a frozen backbone with its task head: a packaged model, a local folder, or any model of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fedlora.errors import ModelError
from fedlora.models import heads
from fedlora.models.images import ImageSpec, image_arguments, image_spec
from fedlora.models.quiet import private_random, quiet
from fedlora.models.sources import Source, find_source
from fedlora.models.text import longest_text, prepare_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from fedlora.config import ModelConfig

Task = Literal["classification", "causal-lm"]
Kind = Literal["text", "image"]


@dataclass
class LoadedModel:
    """A frozen backbone with its task head.

    Attributes:
        model: float32, on the CPU, in eval mode, with no parameter requiring a gradient.
        task: What the head does.
        kind: What the model reads.
        tokenizer: Of a text model; it has a padding token and pads on the right.
        image: What an image model expects of its input.
        head: Dotted names of the `nn.Linear` modules of the task head that are trained; none for causal language models.
        fresh_head: Whether the checkpoint held no weights that fit the head. They are zero then: initialise them.
        source: Folder or hub name that `from_pretrained` accepts.
        revision: Hub commit that was loaded; None for folders.
        max_tokens: Longest text that the model takes, tokens; None where it has no limit, and for images.
        forward_kwargs: Arguments that every call of `model` needs besides its inputs.
    """

    model: PreTrainedModel
    task: Task
    kind: Kind
    tokenizer: PreTrainedTokenizerBase | None
    image: ImageSpec | None
    head: tuple[str, ...]
    fresh_head: bool
    source: str
    revision: str | None = None
    max_tokens: int | None = None
    forward_kwargs: dict[str, Any] = field(default_factory=dict)


def load_model(config: ModelConfig, kind: Kind, task: Task, label_names: Sequence[str]) -> LoadedModel:
    """Load the model that a run file names, ready for adapters.

    The global random generators are neither read nor advanced, and the same checkpoint always gives the same tensors.

    Args:
        config: The section `model` of the run file (its `task` is decided by the caller).
        kind: What the data set holds.
        task: What the head has to do.
        label_names: Of the data set, in the order of the label numbers; ignored for causal language models.

    Raises:
        UnknownNameError, ModelError, AssetError, ConfigError: The model cannot be had, is damaged, or does not fit the task.
    """
    if task == "classification" and len(label_names) < 2:
        raise ModelError(f"classification needs at least two labels; the data set has {len(label_names)}")
    if kind == "image" and task != "classification":
        raise ModelError("images can only be classified. Set model.task to classification, or use a text data set")
    with quiet(), private_random():
        source = find_source(config.name, config.revision)
        settings = _settings(source, kind, task)
        keep_head = task == "causal-lm" or heads.same_labels(settings, label_names)
        if task == "classification":
            _set_labels(settings, label_names)
        tokenizer, image = None, None
        if kind == "text":
            tokenizer = prepare_tokenizer(source, settings)
        else:
            image = image_spec(settings, source.file("preprocessor_config.json"), config.image_size or source.image_size)
        model, untrained = _weights(source, settings, kind, task)
        head, fresh = _head(model, task, untrained, keep_head)
        if tokenizer is not None:
            _check_vocabulary(model, tokenizer, source)
        return LoadedModel(
            model=model,
            task=task,
            kind=kind,
            tokenizer=tokenizer,
            image=image,
            head=head,
            fresh_head=fresh,
            source=source.name,
            revision=source.revision,
            max_tokens=longest_text(model, tokenizer) if tokenizer is not None else None,
            forward_kwargs=image_arguments(model, image) if image is not None else {},
        )


def _settings(source: Source, kind: Kind, task: Task) -> PreTrainedConfig:
    """Read the configuration, and check that transformers has this architecture for this task before any weights are read."""
    from transformers import AutoConfig

    try:
        settings: PreTrainedConfig = AutoConfig.from_pretrained(source.name, **source.arguments)
    except Exception as error:  # transformers lets errors of many libraries through
        raise ModelError(source.explain("its configuration", error)) from error
    if type(settings) not in _architectures(kind, task):
        wanted = {"text": {"classification": "text classification", "causal-lm": "causal language modelling"}[task]}
        raise ModelError(
            f"{source.label} is a {settings.model_type} model; transformers has none of that type for "
            f"{wanted.get(kind, 'image classification')}. Choose another model.name, or another data set or model.task"
        )
    if getattr(settings, "quantization_config", None):
        raise ModelError(
            f"{source.label} is quantised, and cannot be loaded in float32. Name the checkpoint that it was made from"
        )
    # Keys and values of earlier tokens are of no use in training.
    settings.use_cache = False
    return settings


def _auto_class(kind: Kind, task: Task) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

    if kind == "image":
        return AutoModelForImageClassification
    return AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification


def _architectures(kind: Kind, task: Task) -> Any:
    """Return the configuration classes that have a model for this task."""
    import transformers

    if kind == "image":
        return transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if task == "causal-lm":
        return transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def _set_labels(settings: PreTrainedConfig, names: Sequence[str]) -> None:
    settings.id2label = dict(enumerate(names))
    settings.label2id = {name: number for number, name in enumerate(names)}
    settings.problem_type = "single_label_classification"


def _weights(source: Source, settings: PreTrainedConfig, kind: Kind, task: Task) -> tuple[PreTrainedModel, set[str]]:
    """Load the weights; return the model and the names of the parameters that the checkpoint did not fill."""
    import torch

    try:
        # Attention: transformers takes sdpa where the architecture has it, else eager.
        model, report = _auto_class(kind, task).from_pretrained(
            source.name,
            config=settings,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **source.arguments,
        )
    except Exception as error:  # as above; torch, safetensors and pickle add their own
        raise ModelError(source.explain("its weights", error)) from error
    model.eval().requires_grad_(False)
    return model, {*report["missing_keys"], *(mismatch[0] for mismatch in report["mismatched_keys"])}


def _head(model: PreTrainedModel, task: Task, untrained: set[str], keep: bool) -> tuple[tuple[str, ...], bool]:
    if task == "causal-lm":
        heads.refuse_random(model, untrained)
        return (), False
    head, fresh = heads.find_head(model, untrained)
    fresh = fresh or not keep
    if fresh:
        heads.clear(model, head)
    return head, fresh


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Source) -> None:
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {source.label} has {len(tokenizer)} tokens, its model embeds only {rows}: they do not fit"
        )
