"""Do the tests bite? Small lies are put into the verifier, one at a time, and the tests must notice each."""
