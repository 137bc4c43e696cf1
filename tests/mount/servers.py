# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry on loopback."""
import os
import socket
import subprocess
import time

PROGRAM = "/usr/bin/docker-registry"
# user "user", password "secret"
HTPASSWD = "user:$2y$05$l1kVBnZIZTixuwQcqXmzSes08eAgh8VjyhE5sq87Mz8dd/lX.xc.e\n"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class DockerRegistry:
    def __init__(self, folder, is_closed=False):
        """@is_closed: asks for basic auth."""
        os.makedirs(folder)
        self.folder = folder
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        config = ["version: 0.1", "log: {level: error, accesslog: {disabled: true}}",
                  f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}",
                  f"http: {{addr: '{self.host}'}}"]
        if is_closed:
            with open(f"{folder}/htpasswd", "w") as f:
                f.write(HTPASSWD)
            config.append(f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}")
        with open(f"{folder}/config.yml", "w") as f:
            f.write("\n".join(config) + "\n")

    def __enter__(self):
        with open(f"{self.folder}/log", "wb") as log:
            self.process = subprocess.Popen([PROGRAM, "serve", f"{self.folder}/config.yml"],
                                            stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    with open(f"{self.folder}/log") as log:
                        raise RuntimeError(f"docker-registry: {log.read()}") from None
                time.sleep(0.02)

    def __exit__(self, *args):
        self.process.terminate()
        self.process.wait()

    def push(self, layout, name, *options):
        """Copies oci:@layout (FOLDER:TAG) to @name; returns the REF."""
        subprocess.run(["skopeo", "copy", "--insecure-policy", "--quiet", "--dest-tls-verify=false",
                        "--dest-creds", "user:secret", *options, f"oci:{layout}",
                        f"docker://{self.host}/{name}"], check=True, stdout=subprocess.DEVNULL)
        return f"{self.host}/{name}"
