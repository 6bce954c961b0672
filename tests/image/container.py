"""The container, built and started without a daemon: buildah on a base made by debootstrap, namespaces by unshare."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import wait_until

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = "/etc/ssl/certs"
USER, GROUP = 12345, 0


@dataclass(frozen=True, slots=True)
class Store:
    """Where buildah keeps images; `vfs` needs nothing of the kernel, and a copy of everything for each image."""

    folder: Path

    def buildah(self, *arguments: str) -> str:
        places = ["--root", str(self.folder / "images"), "--runroot", str(self.folder / "run")]
        command = ["buildah", "--storage-driver", "vfs", *places, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout.strip()

    def make_base(self) -> None:
        """Debian with its Python, under the name of the image that the Dockerfile starts from."""
        tree = self.folder / "base"
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", tree, MIRROR], check=True, stdout=-3)
        subprocess.run(["tar", "-C", tree, "-cf", self.folder / "base.tar", "."], check=True)
        (self.folder / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        self.buildah("build", "--isolation", "chroot", "--tag", BASE, str(self.folder))

    def build(self, tag: str, **build_arguments: str) -> None:
        """The target `cpu`. What pip is told of this machine is mounted, and is not in the image."""
        wheels = os.environ.get("PIP_FIND_LINKS", "")
        configuration = self.folder / "pip.conf"
        configuration.write_text(f"[global]\ncert = {CERTIFICATES}/ca-certificates.crt\n")
        mounts = [f"--volume={CERTIFICATES}:{CERTIFICATES}:ro", f"--volume={configuration}:/etc/pip.conf:ro"]
        if Path(wheels).is_absolute():
            mounts.append(f"--volume={wheels}:{wheels}:ro")
            build_arguments["TORCH_LINKS"] = wheels
        given = [f"--build-arg={name}={value}" for name, value in build_arguments.items()]
        self.buildah(
            # OCI's format has no health check.
            *("build", "--isolation", "chroot", "--format", "docker", "--pull-never", "--target", "cpu", "--tag", tag),
            *given,
            *mounts,
            str(ROOT),
        )

    def image(self, tag: str) -> "Image":
        config = json.loads(self.buildah("inspect", "--type", "image", tag))["Docker"]["config"]
        return Image(Path(self.buildah("mount", self.buildah("from", "--pull-never", tag))), config)


@dataclass(frozen=True, slots=True)
class Image:
    root: Path
    config: dict[str, Any]

    def as_its_user(self, *command: str) -> list[str]:
        """A command within the root, with the image's environment, no rights, and an id that has no name."""
        rights = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        user = ["/usr/bin/setpriv", f"--reuid={USER}", f"--regid={GROUP}", *rights]
        return [*user, "/usr/bin/env", "-i", "-C", self.config["WorkingDir"], *self.config["Env"], *command]

    def mounts(self, cache: Path, *, network: bool) -> str:
        """The shell's lines that make the root read-only in a namespace of its own, but for /tmp and /cache."""
        root = self.root
        lines = [f"mount --bind {root} {root}", f"mount -o remount,bind,ro {root}", f"mount -t proc proc {root}/proc"]
        lines += [f"mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs {root}/tmp", f"mount --bind {cache} {root}/cache"]
        lines += [f"mount --rbind /dev {root}/dev"]
        if not network:
            return "\n".join([*lines, "ip link set lo up"])
        return "\n".join(
            [*lines, *(f"mount --bind {path} {root}{path}" for path in ("/etc/resolv.conf", CERTIFICATES))]
        )


@dataclass(frozen=True, slots=True)
class Container:
    image: Image
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The server's: `unshare` has it as its child."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def has_begun(self) -> bool:
        """Whether the server's process is within the image by now."""
        pid = self.process.pid
        assert self.process.poll() is None, (self.folder / "log").read_text()
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
        return bool(child) and Path(f"/proc/{child}/root").resolve() == self.image.root.resolve()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command inside, as the server's user and with its environment."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--root"]
        return subprocess.run([*enter, *self.image.as_its_user(*command)], capture_output=True, text=True)

    def is_healthy(self) -> bool:
        kind, *command = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD", "there is no shell to be asked"
        return self.run(*command).returncode == 0

    def wait_until_healthy(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.is_healthy():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(1)

    def stop(self) -> int:
        """The exit code after the signal that the image asks for."""
        os.kill(self.pid, signal.Signals[self.image.config["StopSignal"]])
        return self.process.wait(90)


@contextmanager
def running(image: Image, folder: Path, *, network: bool = True) -> Iterator[Container]:
    cache = folder / "cache"
    cache.mkdir(parents=True)
    cache.chmod(0o2775)
    start = image.as_its_user(*image.config["Entrypoint"], *image.config["Cmd"])
    script = f'set -e\n{image.mounts(cache, network=network)}\nexec chroot {image.root} "$@"'
    namespaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", *([] if network else ["--net"])]
    with (folder / "log").open("wb") as log:
        command = ["unshare", *namespaces, "sh", "-c", script, "sh", *start]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            container = Container(image, folder, process)
            wait_until(container.has_begun)
            yield container
        finally:
            if process.poll() is None:
                process.kill()  # and with it all that it has started
                process.wait()
