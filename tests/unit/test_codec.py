"""The codec under threads."""

from __future__ import annotations

import subprocess
import sys

MANY_FIRST_USES = """
import sys, threading
import msgspec
from balsam_core.model.codec import decode_stored, encode

sys.setswitchinterval(1e-6)
for number in range(150):
    inner = msgspec.defstruct(f"Inner{number}", [(f"field{n}", list[int | str] | None, None) for n in range(20)])
    outer = msgspec.defstruct(f"Outer{number}", [("inner", list[inner])])
    data = encode({"inner": [{"field0": [1, "a"]}] * 9})
    together = threading.Barrier(8)

    def decode(outer=outer, data=data, together=together):
        together.wait()
        for _ in range(9):
            assert len(decode_stored(outer, data, "it").inner) == 9

    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_are_the_first_to_decode_a_type_do_not_crash():
    done = subprocess.run([sys.executable, "-c", MANY_FIRST_USES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
