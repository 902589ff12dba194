"""An enclave's refusals, as a caller in Python reads them and as the command tells them."""

from __future__ import annotations

import inspect

import pytest

import blindbox
from blindbox import cli, wording
from blindbox.wording import as_keywords, as_options, keyword_of, option_of


@pytest.mark.parametrize(
    ("field", "said", "in_python", "on_the_command_line"),
    [
        (
            "blindbox.learning_rate",
            "blindbox.learning_rate is 10; it may be a learning rate above 0 and up to 1; try 0.0002.",
            "learning_rate is 10; it may be a learning rate above 0 and up to 1; try 0.0002.",
            "--learning-rate is 10; it may be a learning rate above 0 and up to 1; try 0.0002.",
        ),
        (
            "hyperparameters.n_epochs",
            "hyperparameters.n_epochs is 101; it may be 1 to 100.",
            "epochs is 101; it may be 1 to 100.",
            "--epochs is 101; it may be 1 to 100.",
        ),
        (
            "blindbox.lora.r",
            "blindbox.lora.r is 0; it may be at least 1.",
            "r is 0; it may be at least 1.",
            "--r is 0; it may be at least 1.",
        ),
        (
            "blindbox.lora",
            'blindbox.lora is for the methods "lora" and "qlora"; "full" trains the weights themselves.',
            "r, alpha, dropout or target_modules is for the methods "
            '"lora" and "qlora"; "full" trains the weights themselves.',
            "--r, --alpha, --dropout or --target-modules is for the methods "
            '"lora" and "qlora"; "full" trains the weights themselves.',
        ),
        (
            "suffix",
            "suffix may have up to 64 letters, digits, dots, hyphens and underscores.",
            "name may have up to 64 letters, digits, dots, hyphens and underscores.",
            "--name may have up to 64 letters, digits, dots, hyphens and underscores.",
        ),
        (
            "blindbox.validation_split",
            "blindbox.validation_split is for where there is no validation_file; send one of them.",
            "validation_split is for where there is no validation; give one of them.",
            "--validation-split is for where there is no --validation; give one of them.",
        ),
        (
            "blindbox.number_elements_for_training",
            "blindbox.number_elements_for_training is 0; it may be 1 to 100000.",
            "number_elements_for_training is 0; it may be 1 to 100000.",
            "--number is 0; it may be 1 to 100000.",
        ),
        (
            "training_file",
            'Of 4 rows, 1 is empty (row 2). Mend them, or send "on_invalid": "skip" to train without them.',
            'Of 4 rows, 1 is empty (row 2). Mend them, or say on_invalid="skip" to train without them.',
            "Of 4 rows, 1 is empty (row 2). Mend them, or say --on-invalid skip to train without them.",
        ),
        (
            "batch_size",
            "What would fit: batch_size 1 with max_length 256. Use method qlora, a smaller r, or a smaller "
            "base model.",
            "What would fit: batch_size 1 with max_length 256. Use method qlora, a smaller r, or a smaller "
            "base model.",
            "What would fit: --batch-size 1 with --max-length 256. Use --method qlora, a smaller --r, or a "
            "smaller base model.",
        ),
        (
            "training_file",
            "You have no file of this id. GET /v1/files lists yours; POST /v1/files uploads one.",
            "You have no file of this id. The path of a file has it sent.",
            "You have no file of this id. The path of a file has it sent.",
        ),
        (
            "id",
            "You have no job of this id. GET /v1/fine_tuning/jobs lists yours.",
            "You have no job of this id. blindbox.jobs(origin) lists yours.",
            "You have no job of this id. blindbox jobs http://h:80 lists yours.",
        ),
        ("model", 'There is no model "name".', 'There is no model "name".', 'There is no model "name".'),
    ],
)
def test_a_refusal_speaks_of_the_options_that_its_reader_has(
    field: str, said: str, in_python: str, on_the_command_line: str
) -> None:
    assert as_keywords(said) == in_python
    for told in (said, in_python):  # the command is handed what Python's callers read
        assert as_options(told, field, "http://h:80") == on_the_command_line


def test_every_keyword_and_option_that_is_spoken_of_exists() -> None:
    assert set(inspect.signature(blindbox.finetune).parameters) >= wording._KEYWORDS
    options = vars(cli.parser().parse_args(["finetune", "ORIGIN", "FILE"]))
    for keyword in wording._KEYWORDS - wording._NO_OPTION - {"data"}:
        assert option_of(keyword).removeprefix("--").replace("-", "_") in options


def test_a_field_that_has_no_option_keeps_its_name() -> None:
    assert keyword_of("training_file") == keyword_of("file") == "data"
    assert option_of("training_file") == "FILE"
    assert option_of("Idempotency-Key") == keyword_of("Idempotency-Key") == "Idempotency-Key"
    assert option_of("metadata") == "metadata"
