"""The benchmark's own trees and images: made once, the same in every run.

tree      ~100,000 small files in ~8,000 folders, 20 layers, and one file of 1 GiB
python    a root file system with python3 and a compiler, from packages of this host
"""
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import estargz  # noqa: E402

MT_LAYER = 'application/vnd.oci.image.layer.v1.tar'


class Layout:
    """An OCI layout with one image, tag latest."""

    def __init__(self, path):
        self.path = path
        os.makedirs(path + '/blobs/sha256', exist_ok=True)
        with open(path + '/oci-layout', 'w') as f:
            f.write('{"imageLayoutVersion":"1.0.0"}')
        self.layers, self.diff_ids = [], []

    def put(self, data):
        return {'digest': estargz.add_blob(self.path, data), 'size': len(data)}

    def add(self, data, suffix, diff_id, annotations=None):
        desc = {'mediaType': MT_LAYER + suffix, **self.put(data)}
        if annotations:
            desc['annotations'] = annotations
        self.layers.append(desc)
        self.diff_ids.append(diff_id)

    def add_file(self, path, suffix, diff_id):
        digest = hashlib.sha256()
        with open(path, 'rb') as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
        name = digest.hexdigest()
        size = os.path.getsize(path)
        os.rename(path, f'{self.path}/blobs/sha256/{name}')
        self.layers.append({'mediaType': MT_LAYER + suffix, 'digest': 'sha256:' + name, 'size': size})
        self.diff_ids.append(diff_id or 'sha256:' + name)

    def finish(self):
        config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'config': {},
                             'rootfs': {'type': 'layers', 'diff_ids': self.diff_ids}}).encode()
        manifest = json.dumps({'schemaVersion': 2, 'mediaType': estargz.MANIFEST_TYPE,
                               'config': {'mediaType': estargz.CONFIG_TYPE, **self.put(config)},
                               'layers': self.layers}).encode()
        index = {'schemaVersion': 2, 'manifests': [
            {'mediaType': estargz.MANIFEST_TYPE, **self.put(manifest),
             'platform': {'architecture': 'amd64', 'os': 'linux'},
             'annotations': {'org.opencontainers.image.ref.name': 'latest'}}]}
        with open(self.path + '/index.json', 'w') as f:
            json.dump(index, f)


# ---------------------------------------------------------------- the tree of 20 layers

N_LAYERS = 20


def text(rng, n, words=[b'%x ' % (i * 2654435761 % 65536) for i in range(4096)]):
    return b''.join(rng.choices(words, k=n // 4 + 1))[:n]


def make_tree(work, n_files):
    """Layer tars in work/tree-layers, an image of them, and the merged copy in work/tree."""
    rng = random.Random(20)
    n_dirs = max(n_files // 12, 8)
    dirs = [f'd{i % 40:02}/e{i // 40 % 20:02}/f{i // 800:03}' for i in range(n_dirs)]
    layout = Layout(work + '/tree-image')
    os.makedirs(work + '/tree', exist_ok=True)
    pool = text(rng, 1 << 20)
    for layer in range(N_LAYERS):
        path = f'{work}/layer.tar'
        with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
            mine = sorted(rng.sample(range(n_dirs), n_dirs // 3) if layer else range(n_dirs),
                          key=dirs.__getitem__)  # as tar walks a tree
            made = set()
            per_dir = {d: [] for d in mine}
            for i in range(layer, n_files, N_LAYERS):
                per_dir[rng.choice(mine)].append(i)
            for d in mine:
                parts = dirs[d].split('/')
                for k in range(1, len(parts) + 1):
                    name = '/'.join(parts[:k])
                    if name not in made:
                        made.add(name)
                        info = tarfile.TarInfo(name)
                        info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1700000000
                        tar.addfile(info)
                for i in per_dir[d]:
                    size = min(int(rng.expovariate(1 / 6000)) + 1, 900000)
                    at = rng.randrange(len(pool) - size) if size < len(pool) else 0
                    info = tarfile.TarInfo(f'{dirs[d]}/file{i:06}.txt')
                    info.size, info.mode, info.mtime = size, 0o644, 1700000000 + i
                    tar.addfile(info, io.BytesIO(pool[at:at + size]))
        subprocess.run(['tar', 'xpf', path, '-C', work + '/tree'], check=True)
        layout.add_file(path, '', None)
    layout.finish()


def make_big(work, size):
    """One file of 1 GiB: an image of it, and the file."""
    os.makedirs(work + '/big', exist_ok=True)
    rng = random.Random(1)
    piece = rng.randbytes(1 << 20)
    with open(work + '/big/big.bin', 'wb') as f:
        for i in range(size >> 20):
            f.write(i.to_bytes(8, 'little') + piece[8:])
    path = work + '/big.tar'
    subprocess.run(['tar', 'cf', path, '-C', work + '/big', 'big.bin'], check=True)
    layout = Layout(work + '/big-image')
    layout.add_file(path, '', None)
    layout.finish()


# ---------------------------------------------------------------- a root with python

def package_files(names):
    out = subprocess.run(['dpkg', '-L', *names], capture_output=True, text=True).stdout
    return sorted({p for p in out.splitlines() if p.startswith('/') and p != '/.' and os.path.lexists(p)})


def closure(names):
    """Those of the packages and what they depend on that this host has installed."""
    seen, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        r = subprocess.run(['dpkg-query', '-W', '-f', '${Depends},${Pre-Depends}', name],
                           capture_output=True, text=True)
        if r.returncode:
            seen.discard(name)
            continue
        for alternative in r.stdout.replace('|', ',').split(','):
            dep = alternative.strip().split(' ')[0].split(':')[0]
            if dep:
                todo.append(dep)
    return sorted(seen)


def make_python(work):
    """python-root (a folder), and images of it in layers: python-gzip and python-estargz."""
    root = work + '/python-root'
    groups = [closure(['libc6', 'coreutils', 'bash']), closure(['python3', 'python3-minimal']),
              closure(['git', 'perl']), closure(['cpp', 'make'])]
    have = set()
    gz, es = Layout(work + '/python-gzip'), Layout(work + '/python-estargz')
    for group in groups:
        buf = io.BytesIO()
        with tarfile.open(fileobj=buf, mode='w', format=tarfile.PAX_FORMAT) as tar:
            if not have:
                for link in ('bin', 'lib', 'lib64', 'sbin'):
                    if os.path.islink('/' + link):
                        tar.add('/' + link, arcname=link, recursive=False)
            for path in package_files(group):
                real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
                if real in have or real.startswith(('/usr/share/doc', '/usr/share/man', '/proc', '/sys')):
                    continue
                have.add(real)
                if os.path.islink('/' + real.strip('/').split('/')[0]) or real in ('/bin', '/lib', '/lib64', '/sbin'):
                    continue
                tar.add(real, arcname=real.lstrip('/'), recursive=False)
        raw = buf.getvalue()
        os.makedirs(root, exist_ok=True)
        subprocess.run(['tar', 'xpf', '-', '-C', root], input=raw, check=True)
        gz.add(gzip.compress(raw, 6, mtime=0), '+gzip', estargz.digest(raw))
        blob, diff_id, toc = estargz.estargz(raw, level=6)
        es.add(blob, '+gzip', diff_id, {estargz.TOC_ANNOTATION: toc})
    gz.finish()
    es.finish()


def make(work, n_files, big):
    """Everything that is not there yet, each under a name that appears when it is whole."""
    os.makedirs(work, exist_ok=True)
    for name, fn in (('tree', lambda w: make_tree(w, n_files)), ('big', lambda w: make_big(w, big)),
                     ('python', make_python)):
        done = f'{work}/{name}.{n_files}.{big}.done'
        if os.path.exists(done):
            continue
        for old in os.listdir(work):
            if old.startswith(name):
                shutil.rmtree(f'{work}/{old}', ignore_errors=True)
        fn(work)
        open(done, 'w').close()
