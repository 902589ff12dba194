"""
From Debian's source of EDK II to the two builds of OVMF that a confidential machine is started with.

Debian's own build measures no kernel on SEV-SNP, and so these are made here: with a compiler and tools that
are pinned like the source, in a folder that holds nothing else. The same lock, patches and code give the same
bytes, which are kept in the cache. What the hardware says of them is `image/measure`'s subject.
"""
