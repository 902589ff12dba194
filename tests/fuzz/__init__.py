"""
Every reader of bytes, fed by a fuzzer that sees which lines its inputs reach (atheris, which is
libFuzzer).
"""
