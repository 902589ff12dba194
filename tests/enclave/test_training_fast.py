"""The fast path gives the losses and gradients of transformers and peft, and keeps its hands off the rest."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from enclave_app.prompts import IGNORED
from tests.kit.models import tiny

torch = pytest.importorskip("torch")

LENGTHS = (200, 7, 131, 64)  # more and fewer than a block of attention, which is 128
PROMPT = 5


def learner(
    family: str, *, dropout: float = 0.0, dtype: Any = None, targets: str | list[str] = "all-linear"
) -> Any:
    """A tiny model with an adapter on linear layers that already says something."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny(family), dtype=dtype or torch.float32)
    torch.manual_seed(1)
    wanted = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    made = get_peft_model(model, wanted)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return made


def batch(model: Any, *, lengths: tuple[int, ...] = LENGTHS, cut: int = 0) -> dict[str, Any]:
    """Rows padded on the right; the first tokens, and `cut` at the end, are not learned."""
    torch.manual_seed(2)
    ids = torch.randint(3, model.config.vocab_size, (len(lengths), max(lengths)))
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        labels[row, PROMPT : length - cut] = ids[row, PROMPT : length - cut]
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def learned(model: Any, loss: Any) -> tuple[float, Any]:
    """A loss, and the gradients of all that is trained, in one row."""
    model.zero_grad()
    loss.backward()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in weights)
    return float(loss.detach()), torch.cat([weight.grad.double().flatten() for weight in weights])


def apart(one: Any, other: Any) -> float:
    return float((one - other).norm() / one.norm())


def plain_loss(model: Any, inputs: dict[str, Any]) -> Any:
    return model(**inputs, use_cache=False).loss


@pytest.mark.parametrize("family", ["llama", "smollm", "qwen2", "qwen3", "falcon", "falcon-new"])
def test_loss_and_gradients_are_those_of_peft(family: str) -> None:
    """To 6 digits and to 1e-5, with prompts masked and rows of different lengths."""
    from enclave_app.training import fast

    model = learner(family)
    inputs = batch(model)
    loss, gradients = learned(model, plain_loss(model, inputs))
    told = fast.install(model)
    assert {"rows", "loss", "lora", "attention"} <= set(told.applied)
    assert told.because == ""
    fast_loss, fast_gradients = learned(model, fast.mean_loss(model, inputs, None))
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    assert apart(gradients, fast_gradients) < 1e-5


@pytest.mark.parametrize(
    "target", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
)
def test_one_layer_alone_may_learn(target: str) -> None:
    """Of the first block nothing else has a gradient then: neither what goes in, nor the others' answers."""
    from enclave_app.training import fast

    model = learner("llama", targets=[target])
    inputs = batch(model)
    loss, gradients = learned(model, plain_loss(model, inputs))
    fast.install(model)
    fast_loss, fast_gradients = learned(model, fast.mean_loss(model, inputs, None))
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    assert apart(gradients, fast_gradients) < 1e-5


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_attention_that_is_made_again_on_the_way_back_gives_the_same(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is for long rows, to save memory."""
    from enclave_app.training import fast

    model = learner(family)
    inputs = batch(model)
    fast.install(model)
    loss, gradients = learned(model, fast.mean_loss(model, inputs, None))
    monkeypatch.setattr(fast, "KEPT_UP_TO", 100)
    again, gradients_again = learned(model, fast.mean_loss(model, inputs, None))
    assert again == loss
    assert torch.equal(gradients, gradients_again)


def test_in_bfloat16_it_stays_as_near_as_peft_does() -> None:
    """Measured from float32: rounding is no worse than the plain path's, by half."""
    from enclave_app.training import fast

    exact = learner("llama")
    inputs = batch(exact)
    loss, gradients = learned(exact, plain_loss(exact, inputs))
    model = learner("llama", dtype=torch.bfloat16)
    plain, plain_gradients = learned(model, plain_loss(model, inputs))
    fast.install(model)
    short, short_gradients = learned(model, fast.mean_loss(model, inputs, None))
    assert short == pytest.approx(loss, rel=2e-2)
    assert abs(short - loss) < 1.5 * abs(plain - loss) + 1e-2 * loss
    assert apart(gradients, short_gradients) < 1.5 * apart(gradients, plain_gradients)


def test_where_all_weights_are_trained_the_gradients_are_right_too() -> None:
    """Without an adapter: linear layers learn, embeddings, norms and head do not."""
    from transformers import AutoModelForCausalLM

    from enclave_app.training import fast

    model = AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32)
    for name, weight in model.named_parameters():
        weight.requires_grad_("_proj" in name)
    inputs = batch(model)
    loss, gradients = learned(model, plain_loss(model, inputs))
    told = fast.install(model)
    assert "lora" not in told.applied
    fast_loss, fast_gradients = learned(model, fast.mean_loss(model, inputs, None))
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    assert apart(gradients, fast_gradients) < 1e-5


def test_beside_layers_in_8_bits_the_gradients_are_right_too() -> None:
    """QLoRA: the plain weights exist for one layer at a time."""
    from enclave_app.training import Recipe, fast
    from enclave_app.training.learner import learner as made

    model = made(str(tiny("qwen2")), torch.device("cpu"), Recipe(method="qlora", rank=4)).model.float()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    inputs = batch(model)
    loss, gradients = learned(model, plain_loss(model, inputs))
    assert fast.install(model) == fast.Installed(("rows", "loss", "attention", "lora", "norm", "mlp"))
    fast_loss, fast_gradients = learned(model, fast.mean_loss(model, inputs, None))
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    assert apart(gradients, fast_gradients) < 1e-5


def test_padding_and_what_follows_the_last_learned_token_are_not_computed() -> None:
    """What reaches the first layer is counted."""
    from enclave_app.training import fast

    model = learner("llama")
    inputs = batch(model, cut=3)
    loss, gradients = learned(model, plain_loss(model, inputs))
    fast.install(model)
    seen = []
    first = model.get_base_model().model.layers[0].input_layernorm
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:2]))
    fast_loss, fast_gradients = learned(model, fast.mean_loss(model, inputs, None))
    # The token that is learned last is wanted, not read; of 7 tokens, 5 are the prompt and 3 are cut.
    assert seen == [(1, sum(length - 3 - 1 for length in LENGTHS if length - 3 > PROMPT))]
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    assert apart(gradients, fast_gradients) < 1e-5


def test_the_sum_is_divided_by_what_the_trainer_counts() -> None:
    """As in trl: over several batches and processes, it is the trainer who knows the number."""
    from enclave_app.training import fast

    model = learner("llama")
    inputs = batch(model)
    fast.install(model)
    count = int((inputs["labels"][:, 1:] != IGNORED).sum())
    mean = fast.mean_loss(model, inputs, None).detach()
    half = fast.mean_loss(model, inputs, 2 * count).detach()
    assert float(half) == pytest.approx(float(mean) / 2)
    assert float(fast.mean_loss(model, inputs, torch.tensor(count)).detach()) == pytest.approx(float(mean))


def test_a_batch_with_nothing_to_learn_teaches_nothing() -> None:
    from enclave_app.training import fast

    model = learner("llama")
    inputs = batch(model)
    inputs["labels"].fill_(IGNORED)
    fast.install(model)
    loss, gradients = learned(model, fast.mean_loss(model, inputs, None))
    assert loss == 0
    assert not gradients.any()


def test_validation_gives_the_same_loss_and_no_gradient() -> None:
    from enclave_app.training import fast

    model = learner("falcon").eval()
    inputs = batch(model)
    with torch.no_grad():
        loss = float(plain_loss(model, inputs))
        fast.install(model)
        told = fast.mean_loss(model, inputs, None)
    assert not told.requires_grad
    assert float(told) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_everything_else_a_model_does_is_untouched(family: str) -> None:
    """Greedy answers, padding on the left, an adapter switched off: bit for bit as before."""
    from enclave_app.training import fast

    model = learner(family).eval()
    inputs = batch(model)
    left = {name: inputs[name].flip(1) for name in ("input_ids", "attention_mask")}

    def all_of_it() -> list[Any]:
        with torch.no_grad(), model.disable_adapter():
            bare = model(**inputs).logits
        with torch.no_grad():
            said = model.generate(**left, max_new_tokens=4, do_sample=False, pad_token_id=0)
            return [bare, model(**inputs).logits, said]

    before = all_of_it()
    names = list(model.state_dict())
    fast.install(model)
    assert all(torch.equal(one, other) for one, other in zip(before, all_of_it(), strict=True))
    assert list(model.state_dict()) == names


def test_layers_with_dropout_stay_as_peft_has_them() -> None:
    """And drop: two losses of one batch differ while training, and are the plain path's when validating."""
    from enclave_app.training import fast

    model = learner("llama", dropout=0.3)
    inputs = batch(model)
    model.eval()
    loss = float(plain_loss(model, inputs))
    told = fast.install(model)
    assert "lora" not in told.applied
    assert "14 layers stay as peft has them" in told.because
    assert float(fast.mean_loss(model, inputs, None).detach()) == pytest.approx(loss, rel=1e-6)
    model.train()
    torch.manual_seed(0)
    one, other = (float(fast.mean_loss(model, inputs, None)) for _ in range(2))
    assert one != other
    torch.manual_seed(0)
    assert float(plain_loss(model, inputs)) != one  # rows without padding draw other numbers


def test_rows_padded_on_the_left_are_refused() -> None:
    from enclave_app.training import fast

    model = learner("llama")
    inputs = {name: value.flip(1) for name, value in batch(model).items()}
    fast.install(model)
    with pytest.raises(ValueError, match="padded on the right"):
        fast.mean_loss(model, inputs, None)


def unknown(which: str) -> Any:
    """Models that are not known, or known with something that is not."""
    import transformers

    size: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "gpt2": ("GPT2", {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}),
        "alibi": ("Falcon", size | {"alibi": True}),
        "window": ("Mistral", size | {"num_key_value_heads": 1, "sliding_window": 16}),
        "dropout": ("Llama", size | {"attention_dropout": 0.1}),
    }
    kind, details = kinds.get(which, ("Llama", size))
    config = getattr(transformers, f"{kind}Config")(**details)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)(config)
    if which == "head":
        return model  # its own head is trained
    if which == "checkpointing":
        model.gradient_checkpointing_enable()
    model.lm_head.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("which", "because"),
    [
        ("gpt2", "GPT2LMHeadModel is not a kind"),
        ("alibi", "alibi"),
        ("window", "sliding window"),
        ("dropout", "dropout is not 0"),
        ("checkpointing", "checkpointing is on"),
        ("head", "the head is trained"),
    ],
)
def test_what_is_not_known_is_left_alone_and_said(which: str, because: str) -> None:
    from enclave_app.training import fast

    model = unknown(which)
    forwards = [module.forward for module in model.modules()]
    told = fast.install(model)
    assert told.applied == ()
    assert because in told.because
    assert forwards == [module.forward for module in model.modules()]


def test_a_feed_forward_of_another_kind_is_not_said_to_be_shorter() -> None:
    import transformers

    from enclave_app.training import fast

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, hidden_act="gelu"
    )
    model = transformers.LlamaForCausalLM(config)
    for weight in model.parameters():
        weight.requires_grad_(False)
    assert fast.install(model).applied == ("rows", "loss", "attention", "norm")


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_served_families_that_are_not_known_are_left_alone(family: str) -> None:
    """Their scores are capped, their windows slide: trl's own way is right for them."""
    from enclave_app.training import fast

    told = fast.install(learner(family))
    assert told.applied == ()
    assert "not a kind of model that is known" in told.because


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_compiled_it_is_the_same(family: str) -> None:
    from enclave_app.training import fast

    model = learner(family)
    inputs = batch(model)
    loss, gradients = learned(model, plain_loss(model, inputs))
    fast.install(model, compiled=True)
    fast_loss, fast_gradients = learned(model, fast.mean_loss(model, inputs, None))
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    assert apart(gradients, fast_gradients) < 1e-5
