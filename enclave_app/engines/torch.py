"""
Hugging Face models on PyTorch: the engine that runs what the fast one cannot, and the reference for it.

Sequences of like length are continued together, a token each per step (`past.py` holds their keys and
values); a prompt is read by itself, a piece per step, and joins then. Base weights are loaded once and never
change; adapters are small matrices beside them (peft), or whole weights in the place of some, switched on
while their rows are at it. How a token is chosen is `choice.py`, beam search `beams.py`.

A family that cannot be padded (recurrent states, positions that depend on the longest of a batch) is read
whole and continued one sequence after another; `card().details` says so.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import warnings
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils import set_peft_model_state_dict
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..refusals import Busy, Conflict, Failed, Refusal
from ..tokenizer import FolderTokenizer
from . import Card, Finish, Refused, Token, Update, Work
from .adapter import Adapter
from .beams import Beams
from .choice import Chooser
from .past import Past, together

MOST_LOGPROBS: Final = 20
PIECE_WORK: Final = 1 << 38  # operations that reading a piece of a prompt may take: about half a second
SHORTER: Final = 2  # rows are padded to at most so many times their length, …
SHORT: Final = 128  # … or by so many tokens, which are cheaper than reading all weights once more
LEAST_KEPT: Final = 16  # a beginning shorter than this is not worth keeping
MOST_KEPT: Final = 256
_PADDED_LAYERS: Final = {"full_attention", "sliding_attention"}


def device_named(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_for(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware, else float32."""
    if device.type != "cpu":
        return torch.bfloat16
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def silence() -> None:
    """What these libraries have to say may hold what they process (threats.md S-20)."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    for name in ("transformers", "peft", "torch", "accelerate", "datasets", "huggingface_hub"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False


@dataclass(eq=False, slots=True)
class _Row:
    """One sequence, from its prompt to its end."""

    key: int
    work: Work
    chooser: Chooser
    past: Any  # where its keys and values are, …
    beams: Beams | None = None
    place: int = 0  # … and which of the sequences there it is
    alone: bool = True  # it holds no other
    held: int = 0  # tokens whose keys and values are there
    said: list[int] = field(default_factory=list)
    gone: bool = False

    @property
    def most(self) -> int:
        """Tokens it may come to hold."""
        width = self.beams.width if self.beams is not None else 1
        return width * (len(self.work.ids) + self.work.sampling.max_new_tokens)


@dataclass(eq=False, slots=True)
class _Batch:
    """Rows that are continued together, by their place in its past."""

    rows: list[_Row]
    past: Any


@dataclass(frozen=True, slots=True)
class _Kept:
    """What an answered sequence left behind, for its owner's next prompt that begins alike."""

    owner: str
    tuning: str
    ids: tuple[int, ...]
    past: Past


class TorchEngine:
    """One model of a folder that was found safe to load (`models.py`)."""

    def __init__(
        self,
        folder: str,
        *,
        device: str = "auto",
        threads: int = 0,
        kv_cache_mib: int = 0,
        most_sequences: int = 64,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        """
        Load the model and warm it up.

        `threads` 0 = as torch sees fit; `kv_cache_mib` 0 = a quarter of the memory that is free then.
        """
        silence()
        if threads:
            torch.set_num_threads(threads)
        self._folder = folder
        self._device = device_named(device)
        self._dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or dtype_for(self._device)
        plain = self._loaded()
        self._ipex, self._net = _with_ipex(plain, self._device, self._dtype)
        # Peft does not know IPEX's layers: adapters then get plain weights, when the first is loaded.
        self._tunable: Any = None if self._ipex else plain
        self._peft: Any = None  # a PeftModel around `_tunable`, from the first adapter on
        self._names: dict[str, str] = {}  # peft's, by version
        self._wholes: dict[str, dict[str, torch.Tensor]] = {}  # weights by name, by version
        self._weights: dict[str, torch.nn.Parameter] = {}  # of `_tunable`
        if not self._ipex:
            self._weights |= plain.named_parameters()
        self._base: dict[str, torch.Tensor] = {}  # what is not in its place now
        self._counter = 0
        self._active: str | None = None  # the version that is switched on, "" = none; None = not known
        self._config: Any = plain.config.get_text_config(decoder=True)
        self._takes = set(inspect.signature(plain.forward).parameters)
        self._padded = _can_be_padded(plain, self._config) and "position_ids" in self._takes
        self._turn = _turn(self._config)
        self._ends = FolderTokenizer(Path(folder)).ends
        self._context: int | None = getattr(self._config, "max_position_embeddings", None)
        self._most_sequences = most_sequences
        parameters = sum(each.numel() for each in plain.parameters())
        self._piece = _piece(parameters) if self._device.type == "cpu" else 2048

        self._rows: dict[int, _Row] = {}
        self._unread: deque[_Row] = deque()
        self._read: list[_Row] = []  # and not yet in a batch
        self._batches: list[_Batch] = []
        self._searching: list[_Row] = []
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._reused = 0

        self._kv_bytes = self._warm_up()
        free = kv_cache_mib << 20 or _free_memory(self._device) // 4
        # Rows of a batch are padded, at worst to twice their length.
        self._room = max(1, free // (SHORTER * self._kv_bytes))

    def card(self) -> Card:
        abilities = {"logit_bias"} | ({"beams", "prefix_cache"} if self._padded else set())
        return Card(
            context=self._context,
            room=self._room,
            most_sequences=self._most_sequences,
            kv_bytes=self._kv_bytes,
            abilities=frozenset(abilities),
            most_logprobs=MOST_LOGPROBS,
            tunes="within",
            details=(
                ("engine", f"torch {torch.__version__}"),
                ("weights", str(self._dtype).removeprefix("torch.")),
                ("arithmetic", str(self._dtype).removeprefix("torch.")),
                ("device", str(self._device)),
                ("threads", str(torch.get_num_threads())),
                ("sequences", "together" if self._padded else "one after another"),
                *([("ipex", self._ipex)] if self._ipex else []),
            ),
        )

    # --- sequences ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def start(self, key: int, work: Work) -> None:
        self._check(work)
        sampling = work.sampling
        chooser = Chooser(sampling, work.ids, self._config.vocab_size)
        beams = Beams(sampling, chooser, self._ends) if sampling.num_beams > 1 else None
        row = _Row(key, work, chooser, None, beams)
        self._make_room(row)
        row.past, row.held = self._beginning(work)
        self._rows[key] = row
        self._unread.append(row)

    def busy(self) -> bool:
        return bool(self._rows)

    def cancel(self, key: int) -> None:
        row = self._rows.get(key)
        if row is not None:
            self._forget(row)

    @torch.inference_mode()
    def step(self) -> list[Update | Refused]:
        """
        A token for each sequence whose prompt has been read, and a piece more of the prompts that have not.

        1. rows that were read join a batch; those that are gone leave theirs
        2. every batch is continued, and every beam search
        3. prompts are read, so far as a step may take
        """
        told: list[Update | Refused] = []
        told += self._regroup()  # 1
        for batch in list(self._batches):  # 2
            told += self._continue(batch)
        for row in list(self._searching):
            told += self._search(row)
        told += self._read_prompts()  # 3
        return told

    def gauges(self) -> dict[str, float]:
        return {
            "sequences": float(len(self._rows)),
            "batches": float(len(self._batches)),
            "kv_used_tokens": float(sum(row.held for row in self._rows.values())),
            "kv_kept_tokens": float(sum(len(kept.ids) for kept in self._kept.values())),
            "prefix_tokens_reused": float(self._reused),
        }

    def _check(self, work: Work) -> None:
        sampling = work.sampling
        if work.tuning and work.tuning not in self._names and work.tuning not in self._wholes:
            raise Conflict("This tuned model is not loaded.", code="not_loaded")
        if sampling.constraint is not None:
            raise Refusal(
                "This enclave's engine cannot hold an answer to a schema. Leave response_format and tools "
                "out, and say in the prompt what the answer should look like.",
                code="unsupported",
                param="response_format",
            )
        if (sampling.logprobs or 0) > MOST_LOGPROBS:
            raise Refusal(
                f"{sampling.logprobs} alternatives are asked for; at most {MOST_LOGPROBS} are told.",
                code="invalid_value",
                param="top_logprobs",
            )
        if sampling.num_beams > 1 and not self._padded:
            raise Refusal(
                "This model cannot be searched with beams. Leave num_beams out.",
                code="unsupported",
                param="num_beams",
            )
        if sampling.num_beams > 1 and sampling.logprobs is not None:
            raise Refusal(
                "A beam search tells no logprobs. Leave one of the two out.",
                code="invalid_value",
                param="logprobs",
            )
        total = len(work.ids) + sampling.max_new_tokens
        if self._context is not None and total > self._context:
            raise Refusal(
                f"Prompt and answer together have {total} tokens; the model takes {self._context}.",
                code="context_length_exceeded",
            )

    def _make_room(self, row: _Row) -> None:
        """Free what was kept for others, as far as needed; raises `Refusal` if that is not enough."""
        taken = row.most + sum(each.most for each in self._rows.values())
        if row.most > self._room:
            raise Refusal(
                f"This needs memory for {row.most} tokens (of every beam, prompt and answer together); "
                f"this enclave has it for {self._room}.",
                code="context_length_exceeded",
            )
        if taken > self._room:
            raise _no_memory()
        while self._kept and taken + sum(len(kept.ids) for kept in self._kept.values()) > self._room:
            self._kept.popitem(last=False)

    def _forget(self, row: _Row) -> None:
        """It is over, in whatever way. What it held goes now, or when its batch is made anew."""
        row.gone = True
        self._rows.pop(row.key, None)
        if row in self._unread:
            self._unread.remove(row)
        self._read = [each for each in self._read if each is not row]
        self._searching = [each for each in self._searching if each is not row]
        self._batches = [batch for batch in self._batches if not all(each.gone for each in batch.rows)]
        row.past = None

    # --- prompts --------------------------------------------------------------------------------------

    def _read_prompts(self) -> list[Update | Refused]:
        """A piece of each in turn, until a piece's length has been read in all."""
        told: list[Update | Refused] = []
        left = self._piece
        while left > 0 and self._unread:
            row = self._unread[0]
            # Always in the same pieces, whoever else is there: the numbers depend on it, if only a little.
            piece = row.work.ids[row.held : row.held + self._piece] if self._padded else row.work.ids
            left -= len(piece)
            try:
                scores = self._scores(row.work.tuning, row.past, [piece], [row.held], None)
            except (MemoryError, RuntimeError) as error:
                told.append(self._given_up(row, error))
                continue
            row.held += len(piece)
            if row.held < len(row.work.ids):
                self._unread.rotate(-1)
                continue
            self._unread.popleft()
            if row.work.sampling.max_new_tokens < 1:
                told.append(self._ended(row, (), "length"))
            elif row.beams is not None:
                self._searching.append(row)
                told += self._spread(row, scores)
            else:
                self._read.append(row)
                told.append(self._say(row, row.chooser.choose(scores[0])))
        return told

    def _say(self, row: _Row, token: Token) -> Update:
        sampling = row.work.sampling
        if token.id in self._ends and not sampling.ignore_end:
            return self._ended(row, (), "stop")
        row.said.append(token.id)
        if len(row.said) >= sampling.max_new_tokens:
            return self._ended(row, (token,), "length")
        return Update(row.key, (token,))

    def _ended(self, row: _Row, tokens: tuple[Token, ...], finish: Finish) -> Update:
        if row.beams is None:
            self._keep(row)
        self._forget(row)
        return Update(row.key, tokens, finish)

    def _given_up(self, row: _Row, error: Exception) -> Refused:
        """There was no memory for this row; whatever else went wrong is the engine's end."""
        if not _out_of_memory(error):
            raise error
        self._forget(row)
        self._kept.clear()  # it is for saving time; memory is needed more
        return Refused(row.key, _no_memory())

    def _newest(self, rows: list[_Row]) -> _Row:
        return next(row for row in reversed(self._rows.values()) if row in rows)

    # --- batches --------------------------------------------------------------------------------------

    def _regroup(self) -> list[Refused]:
        """Make batches of the rows that are there now; those that would be the same stay as they are."""
        rows = [row for batch in self._batches for row in batch.rows if not row.gone] + self._read
        if not self._read and len(rows) == sum(len(batch.rows) for batch in self._batches):
            return []
        there = {frozenset(map(id, batch.rows)): batch for batch in self._batches}
        told: list[Refused] = []
        while True:
            try:
                batches = [
                    there.get(frozenset(map(id, group))) or self._batch(group) for group in self._groups(rows)
                ]
                break
            except (MemoryError, RuntimeError) as error:
                newest = self._newest(rows)
                rows.remove(newest)
                told.append(self._given_up(newest, error))
        for batch in batches:
            for place, row in enumerate(batch.rows):
                row.past, row.place, row.alone = batch.past, place, len(batch.rows) == 1
        self._batches, self._read = batches, []
        return told

    def _groups(self, rows: list[_Row]) -> list[list[_Row]]:
        """Who may be continued together: the same adapter, and no more padding than it is worth."""
        groups: list[list[_Row]] = []
        for row in sorted(rows, key=lambda row: (row.work.tuning, -row.held)):
            first = groups[-1][0] if groups else None
            if (
                self._padded
                and first is not None
                and first.work.tuning == row.work.tuning
                and first.held <= max(SHORTER * row.held, row.held + SHORT)
            ):
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _batch(self, rows: list[_Row]) -> _Batch:
        if len(rows) == 1 and rows[0].alone:
            return _Batch(rows, rows[0].past)
        return _Batch(rows, together([(row.past, row.place, row.held) for row in rows]))

    def _continue(self, batch: _Batch) -> list[Update | Refused]:
        rows = batch.rows
        held = [row.held for row in rows]
        longest = max(held)
        ids: list[tuple[int, ...]] = [(row.said[-1],) for row in rows]
        begins, mask = held, None
        if min(held) < longest:
            columns = torch.arange(longest + 1, device=self._device)
            mask = columns >= longest - torch.tensor(held, device=self._device)[:, None]
        if held == [self._turn]:
            # From here on all positions mean something else: it is read once more.
            batch.past = rows[0].past = DynamicCache(config=self._config)
            ids, begins = [(*rows[0].work.ids, *rows[0].said)], [0]
        try:
            scores = self._scores(rows[0].work.tuning, batch.past, ids, begins, mask)
        except (MemoryError, RuntimeError) as error:
            if len(rows) > 1 and _out_of_memory(error):
                batch.past.length = longest  # the layers that had their column take it again
            return [self._given_up(self._newest(rows), error)]
        likeliest = scores.argmax(dim=-1).tolist()
        told: list[Update | Refused] = []
        for row, own, best in zip(rows, scores, likeliest, strict=True):
            row.held += 1
            told.append(self._say(row, Token(best) if row.chooser.plain else row.chooser.choose(own)))
        return told

    def _search(self, row: _Row) -> list[Update | Refused]:
        assert row.beams is not None
        running = row.beams.running
        try:
            scores = self._scores(
                row.work.tuning,
                row.past,
                [(said[-1],) for said in running],
                [row.held] * len(running),
                None,
            )
        except (MemoryError, RuntimeError) as error:
            return [self._given_up(row, error)]
        row.held += 1
        return self._spread(row, scores)

    def _spread(self, row: _Row, scores: torch.Tensor) -> list[Update | Refused]:
        assert row.beams is not None
        order = row.beams.take(scores)
        if order is None:
            tokens, stopped = row.beams.best
            said = tuple(Token(token) for token in tokens)
            return [self._ended(row, said, "stop" if stopped else "length")]
        try:
            row.past.order(order)
        except (MemoryError, RuntimeError) as error:
            return [self._given_up(row, error)]
        return []

    def _scores(
        self,
        tuning: str,
        past: Any,
        ids: list[tuple[int, ...]],
        begins: list[int],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Read these tokens after those of the past; the scores of what may follow each row."""
        net = self._switched(tuning)
        read = torch.tensor(ids, device=self._device)
        given: dict[str, Any] = {"input_ids": read, "past_key_values": past, "use_cache": True}
        if "position_ids" in self._takes:
            first = torch.tensor(begins, device=self._device)
            given["position_ids"] = first[:, None] + torch.arange(read.shape[1], device=self._device)
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        if mask is not None:
            given["attention_mask"] = mask
        if not self._padded:
            _reset_positions(net)
        scores: torch.Tensor = net(**given).logits[:, -1, :].float()
        return scores

    # --- beginnings that were read before -----------------------------------------------------------------

    def _beginning(self, work: Work) -> tuple[Any, int]:
        """Where the prompt's keys and values go, and how many of them are there already."""
        if not self._padded:
            return DynamicCache(config=self._config), 0
        best: tuple[int, int] | None = None
        for number, kept in self._kept.items():
            # Only what the same owner asked of the same model: how long reading takes would tell (S-22).
            if kept.owner != work.owner or kept.tuning != work.tuning:
                continue
            # The last token is read in any case: what follows it is not kept.
            alike = min(_alike(kept.ids, work.ids), len(work.ids) - 1)
            if alike >= LEAST_KEPT and (best is None or alike > best[0]):
                best = (alike, number)
        if best is None:
            return Past(), 0
        alike, number = best
        self._kept.move_to_end(number)
        self._reused += alike
        return self._kept[number].past.beginning(alike), alike

    def _keep(self, row: _Row) -> None:
        work = row.work
        if not self._padded or not work.owner or row.held < LEAST_KEPT:
            return
        ids = (*work.ids, *row.said)[: row.held]
        try:
            kept = _Kept(work.owner, work.tuning, ids, row.past.copy(row.place, row.held))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            return
        for number, other in list(self._kept.items()):
            if (other.owner, other.tuning) == (work.owner, work.tuning) and other.ids == ids[
                : len(other.ids)
            ]:
                del self._kept[number]
        self._counter += 1
        self._kept[self._counter] = kept
        taken = sum(each.most for each in self._rows.values())
        while len(self._kept) > MOST_KEPT or (
            self._kept and taken + sum(len(each.ids) for each in self._kept.values()) > self._room
        ):
            self._kept.popitem(last=False)

    # --- adapters -------------------------------------------------------------------------------------

    def load(self, version: str, adapter: Adapter) -> None:
        if version in self._names or version in self._wholes:
            return
        try:
            adapter.modules()
            weights = safetensors.torch.load(adapter.weights)
            if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
                raise _damaged()
            if self._tunable is None:
                self._tunable = self._loaded()
                self._weights = dict(self._tunable.named_parameters())
        except Refusal:
            raise
        except Exception as error:
            if _out_of_memory(error):
                raise _no_memory() from error
            raise _damaged() from error
        if adapter.manifest.kind == "full":
            self._wholes[version] = self._whole(weights)
        else:
            self._names[version] = self._beside(adapter, weights)

    def _whole(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """New weights as the model takes them; raises `Refusal`."""
        for name, tensor in weights.items():
            there = self._weights.get(name)
            if there is None or there.shape != tensor.shape:
                raise _damaged()
        try:
            return {name: tensor.to(self._device, self._dtype) for name, tensor in weights.items()}
        except (MemoryError, RuntimeError) as error:
            if _out_of_memory(error):
                raise _no_memory() from error
            raise

    def _beside(self, adapter: Adapter, weights: dict[str, torch.Tensor]) -> str:
        """Peft's name of the matrices that are beside the weights now; raises `Refusal`."""
        manifest = adapter.manifest
        config = LoraConfig(
            r=manifest.rank,
            lora_alpha=manifest.alpha,
            target_modules=list(manifest.targets),
            task_type="CAUSAL_LM",
            inference_mode=True,
            init_lora_weights=False,
        )
        self._counter += 1
        name = f"a{self._counter}"
        self._put_back()
        try:
            if self._peft is None:
                self._peft = get_peft_model(
                    self._tunable, config, adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                self._peft.add_adapter(name, config, autocast_adapter_dtype=False)
            result = set_peft_model_state_dict(self._peft, weights, adapter_name=name)
        except Exception as error:
            self._drop(name)
            if _out_of_memory(error):
                raise _no_memory() from error
            raise _damaged() from error
        if result.unexpected_keys or any(f".{name}." in key for key in result.missing_keys):
            self._drop(name)
            raise _damaged()
        self._peft.to(self._device).requires_grad_(False).eval()
        return name

    def unload(self, version: str) -> None:
        name, whole = self._names.pop(version, None), self._wholes.pop(version, None)
        if name is None and whole is None:
            return
        for number, kept in list(self._kept.items()):
            if kept.tuning == version:
                del self._kept[number]
        self._put_back()
        if name is not None:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._active = None
        if self._peft is not None and name in self._peft.peft_config:
            self._peft.delete_adapter(name)

    def _put_back(self) -> None:
        """The base model's own weights where they belong; nobody is at work with others just now."""
        self._active = None
        for name, tensor in self._base.items():
            self._weights[name].data = tensor
        self._base.clear()

    def _switched(self, tuning: str) -> Any:
        """The model with this adapter at work and no other."""
        if tuning == self._active or (self._peft is None and not self._wholes and not self._base):
            return self._tunable if tuning else self._net
        self._put_back()
        if self._peft is not None and tuning in self._names:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(self._names[tuning])
        elif self._peft is not None:
            self._peft.base_model.disable_adapter_layers()
        for name, tensor in self._wholes.get(tuning, {}).items():
            self._base[name] = self._weights[name].data
            self._weights[name].data = tensor
        self._active = tuning
        return self._tunable if tuning else self._net

    # --- making ready -----------------------------------------------------------------------------------

    def _loaded(self) -> Any:
        net: Any = AutoModelForCausalLM.from_pretrained(
            self._folder,
            dtype=self._dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
        if (
            self._device.type == "cpu"
            and net.config._attn_implementation == "sdpa"
            and net._supports_attention_backend
        ):
            net.set_attn_implementation(_ATTENTION)
        return net.to(self._device).requires_grad_(False).eval()

    @torch.inference_mode()
    def _warm_up(self) -> int:
        """Read and continue a little, so that nobody waits for it later; what a token takes in memory."""
        past = Past() if self._padded else DynamicCache(config=self._config)
        self._scores("", past, [(0,) * 8], [0], None)
        self._scores("", past, [(0,)], [8], None)
        taken = 0
        for layer in past.layers:
            for part in (getattr(layer, "keys", None), getattr(layer, "values", None)):
                if part is not None:
                    taken += part.shape[1] * part.shape[3] * part.element_size()
        return max(1, taken)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """
    Attention as transformers' `sdpa`, but where rows are padded and heads share keys.

    There it would write every key and value once for each head that reads it, at each token; torch's kernel
    for CPUs can read them where they are, with a mask too.
    """
    if mask is None or key.shape[1] == query.shape[1]:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **options)
        return plain
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=options.get("scaling"), enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


_ATTENTION: Final = "blindbox_shared_heads"
AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _with_ipex(net: Any, device: torch.device, dtype: torch.dtype) -> tuple[str, Any]:
    """
    The model as Intel's extension makes it, and the extension's version; "" where it is not installed.

    Retired by Intel after 2.8, never required: docs/decisions/0010-ipex.md.
    """
    if device.type != "cpu":
        return "", net
    try:
        ipex = importlib.import_module("intel_extension_for_pytorch")
    except (ImportError, OSError, SystemExit):
        # It ends the process when torch has another version than its own.
        return "", net
    return str(ipex.__version__), ipex.optimize(net, dtype=dtype, inplace=True)


def _can_be_padded(net: Any, config: Any) -> bool:
    """Whether a sequence is the same with nothing before it, and with others beside it."""
    layers = set(getattr(config, "layer_types", None) or ())
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {
        each.get("rope_type") for each in rope.values() if isinstance(each, dict)
    }
    return not (
        layers - _PADDED_LAYERS
        or kinds & {"dynamic", "longrope"}  # frequencies by the longest of the batch
        or getattr(net, "_is_stateful", False)
        or getattr(config, "num_kv_shared_layers", None)
    )


def _turn(config: Any) -> int | None:
    """The length after which Phi-3's kind of positions are counted by another measure."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)


def _reset_positions(net: Any) -> None:
    """Undo what a longer sequence did to frequencies that grow with it: transformers leaves them grown."""
    for module in net.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name.endswith("original_inv_freq"):
                setattr(module, name.replace("original_", ""), buffer)


def _piece(parameters: int) -> int:
    """How many tokens of a prompt are read at once: a power of two, fewer for larger models."""
    affordable = PIECE_WORK // (2 * max(1, parameters))
    return max(32, min(256, 1 << max(0, affordable.bit_length() - 1)))


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 1 << 30


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _no_memory() -> Busy:
    return Busy(
        "There is not enough memory for this beside what is running. Try again in a few seconds.",
        code="no_memory",
        retry_after=5,
    )


def _damaged() -> Failed:
    return Failed(
        "The stored adapter does not fit the model. Fine-tune again to replace it.", code="damaged_adapter"
    )
