"""
What the hardware will measure of a build, worked out from its files alone: `measurements.json`.

Nothing here asks a machine, the network or the clock. `pe.py`, `uki.py`, `gpt.py` and `ovmf.py` read files,
`events.py` tells what a boot measures of them, `pcr.py`, `tdx.py` and `snp.py` what the registers and digests
are then, and `document.py` writes, reads and compares all of it. `python -m image.measure --help`.
"""
