"""Debian's wrk as the client, and what it says."""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("post.lua")
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True, slots=True)
class Load:
    """Requests a second, and latencies in milliseconds."""

    per_second: float
    p50: float
    p99: float


async def run(url: str, seconds: int, connections: int = 64, script: Path = _SCRIPT, *arguments: str) -> Load:
    """Posts what the script makes, as fast as answers come. Raises AssertionError when any answer was not a 2xx."""
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url, *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    out = (await process.communicate())[0].decode()
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", out)
    assert not refused, f"{url}: {refused[0]}" if refused else ""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert rate, out
    return Load(float(rate[1]), _latency(out, "50%"), _latency(out, "99%"))


def _latency(out: str, percentile: str) -> float:
    found = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)\b", out)
    assert found, out
    return float(found[1]) * _UNITS[found[2]]
