"""A real S3-speaking server (moto's, over HTTP) in a process of its own, for the fixture `s3`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# It ends with its standard input, so that none outlives the tests, however they end.
_SERVER = """
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class S3:
    """The server, by its address; os.environ has it too, for child processes and Ray actors."""

    endpoint: str

    @property
    def fs(self):
        """A file system of s3fs that remembers no listing."""
        import fsspec

        return fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)

    def url(self, bucket: str) -> str:
        """s3://<bucket>, of a bucket that is there; names have 3 or more of a-z, 0-9 and `-`."""
        fs = self.fs
        if not fs.exists(bucket):
            fs.mkdir(bucket)
        return f"s3://{bucket}"

    def put(self, url: str, data: bytes) -> str:
        """Store one object; returns its URL."""
        self.fs.pipe_file(url, data)
        return url

    def get(self, url: str) -> bytes:
        """The bytes of one object."""
        return self.fs.cat_file(url)

    def put_tree(self, path: Path, url: str) -> str:
        """Store a file at `url`, or every file of a folder below it; returns `url`."""
        fs = self.fs
        if path.is_file():
            fs.put_file(str(path), url)
            return url
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            fs.put_file(str(file), f"{url}/{file.relative_to(path).as_posix()}")
        return url

    def tree(self, url: str) -> dict[str, str]:
        """{name below `url`: SHA-256} of every object, as the `tree` of a folder."""
        fs, start = self.fs, url.removeprefix("s3://").rstrip("/") + "/"
        return {
            name.removeprefix(start): hashlib.sha256(fs.cat_file(name)).hexdigest()
            for name in sorted(fs.find(url))
        }

    def remove(self, url: str) -> None:
        """Remove an object, or all below `url`."""
        self.fs.rm(url, recursive=True)


@contextlib.contextmanager
def serving(scratch: Path) -> Iterator[S3]:
    """A server while the context lasts, named in the environment.

    Args:
        scratch: $WRISTAUGMENT_SCRATCH of everything that runs meanwhile.
    """
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": "tests",
                "AWS_SECRET_ACCESS_KEY": "of-no-account",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_EC2_METADATA_DISABLED": "true",
                "NO_PROXY": "127.0.0.1,localhost",
                "no_proxy": "127.0.0.1,localhost",
                "WRISTAUGMENT_SCRATCH": str(scratch),
            }.items():
                patch.setenv(name, value)
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
                patch.delenv(name, raising=False)
            yield S3(endpoint)
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
