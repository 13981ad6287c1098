"""Captions from a language model in a folder on this machine: no network, no pickle, no code of the model's."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from autoseg.errors import UserError
from autoseg.records import content_hash, file_sha256
from vlm.corpus.captions.asking import AskingWriter, Reply
from vlm.corpus.captions.posting import shortened
from vlm.corpus.captions.prompting import Messages, NoCaptions, prompt_text, with_schema

LONGEST_ANSWER_TOKENS = 1536
"""Ten captions of at most 64 tokens with their JSON are below 900; the rest is room for a few words around them."""
SHORTEST_ANSWER_TOKENS = 64
"""With less room in the model's context not even one caption fits."""
SHAPING = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Files of a model folder that change what the model says."""


class LoadedModel(NamedTuple):
    """A transformers tokenizer and causal language model, ready to generate greedily. context : tokens it takes."""

    tokenizer: Any
    model: Any
    context: int | None


class LocalModelWriter(AskingWriter):
    """Asks a causal language model of the transformers library, decoding greedily: the same question, the same answer.

    The writer's name holds a hash of the folder's files, so a cache never takes one model for another. Weights are
    loaded with the first question, not for captions that come from a cache.

    Parameters
    ----------
    folder : as `save_pretrained` writes it: config.json, tokenizer, weights as safetensors.
    device : "cpu", "cuda", … None: a GPU where there is one.

    Raises
    ------
    UserError : the folder is missing, holds no model, or only weights that would have to be unpickled.
    """

    def __init__(
        self, folder: Path, *, device: str | None = None, asks: int = 3, answer_tokens: int = LONGEST_ANSWER_TOKENS
    ) -> None:
        _check_folder(folder)
        super().__init__(f"local {folder.resolve().name} {folder_hash(folder)}", asks)
        self._folder, self._device, self._answer_tokens = folder, device, answer_tokens

    def chat(self, messages: Messages) -> Reply:
        """The model's answer; NoCaptions where the conversation leaves no room for one."""
        tokenizer, model, context = self._loaded
        text, has_specials = _as_text(tokenizer, with_schema(messages))
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not has_specials)
        length = inputs["input_ids"].shape[1]
        room = self._answer_tokens if context is None else min(self._answer_tokens, context - length)
        if room < SHORTEST_ANSWER_TOKENS:
            raise NoCaptions(f"the question has {length} tokens; the model takes {context}", "")
        with _quiet():
            tokens = model.generate(
                inputs["input_ids"].to(model.device), attention_mask=inputs["attention_mask"].to(model.device),
                max_new_tokens=room)
        return Reply(tokenizer.decode(tokens[0, length:], skip_special_tokens=True), self.name)

    @cached_property
    def _loaded(self) -> LoadedModel:
        return load_model(self._folder, self._device)


def load_model(folder: Path, device: str | None) -> LoadedModel:
    """Tokenizer and model of a folder. UserError where they cannot be loaded, or weights are missing."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        from transformers.utils.import_utils import is_torch_cuda_available
    except ImportError:
        raise UserError("captions of a local model need the package transformers.\n"
                        "Install it: pip install 'autoseg[vlm]'.") from None
    safely = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **safely)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, **safely, use_safetensors=True, dtype="auto", output_loading_info=True)
            model, found = loaded
            model = model.to(device or ("cuda" if is_torch_cuda_available() else "cpu")).eval()
    except Exception as error:  # what a folder's content raises has classes of four libraries, without a common one
        what = shortened(f"{type(error).__name__}: {error}", 400)
        raise UserError(f"{folder} cannot be loaded as a causal language model: {what}\n"
                        "Give the folder of a model that `save_pretrained` of transformers wrote.") from None
    if problems := sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"]))):
        raise UserError(f"{folder}: {len(problems)} weights of the model are missing or have another shape, the first "
                        f"is {problems[0]}.\nIs it a causal language model, and was it copied completely?")
    stops = model.generation_config.eos_token_id
    stops = tokenizer.eos_token_id if stops is None else stops
    padding = stops[0] if isinstance(stops, list) else stops
    # The folder's own generation settings may ask for draws by chance.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, num_beams=1, eos_token_id=stops, pad_token_id=padding)
    return LoadedModel(tokenizer, model, getattr(model.config.get_text_config(), "max_position_embeddings", None))


def folder_hash(folder: Path) -> str:
    """Eight digits that change with any file of the model."""
    files = sorted(file for file in folder.iterdir() if file.suffix in SHAPING and file.is_file())
    return content_hash({file.name: file_sha256(file) for file in files})


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"--caption-model {folder} is no folder. Give the folder of a transformers model.")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: it is no transformers model. Give a folder that "
                        "`save_pretrained` wrote.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no .safetensors file. Weights in other formats are not loaded: they can hold "
                        "code.\nConvert them: model.save_pretrained(FOLDER) in transformers writes safetensors.")


def _as_text(tokenizer: Any, messages: Messages) -> tuple[str, bool]:
    """(the conversation in the model's own form, whether special tokens are in it already)."""
    if not tokenizer.chat_template:
        return f"{prompt_text(messages)}\n\n", False
    from jinja2 import TemplateError

    # Models that can think aloud would fill the answer with it.
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return tokenizer.apply_chat_template(list(messages), **options), True
    except TemplateError:  # some templates know no system role
        system, user, *later = messages
        merged = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
        return tokenizer.apply_chat_template([merged, *later], **options), True


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of transformers on the terminal: its bars and hints are about loading, ours say what matters."""
    from transformers.utils import logging as transformers_logging

    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
