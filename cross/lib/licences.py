"""The notices and licences of everything in the binary, as they came: licences.py TRIPLE

Each text once, below the names of all crates and C libraries that came with it. A crate without a text of its own is
named with its licence's name.
"""

import json
import pathlib
import subprocess
import sys

TEXTS = ("LICEN", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE")
# Crates that carry the sources of a C library: where that keeps its own.
WITHIN = {
    "openssl-src": ["openssl/LICENSE.txt"],
    "rdkafka-sys": ["librdkafka/LICENSES.txt"],
    "zstd-sys": ["zstd/LICENSE"],
    "libz-sys": ["src/zlib/LICENSE"],
    "libmimalloc-sys": ["c_src/mimalloc/LICENSE", "c_src/mimalloc/v2/LICENSE", "c_src/mimalloc/v3/LICENSE"],
}
# Build scripts only, but what they build is in the binary.
BUILT = {"openssl-src"}
ALSO = """\
SQLite is in the public domain. The Rust standard library is MIT OR Apache-2.0. From zig come compiler-rt and libunwind
(Apache-2.0 WITH LLVM-exception) and, in static builds, musl (MIT, Copyright 2005-2025 Rich Felker, et al.).
"""


def linked(metadata):
    """Packages that are in the binary."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    seen, queue = set(), [root]
    while queue:
        node = queue.pop()
        package = packages[node]
        if node in seen or any("proc-macro" in target["kind"] for target in package["targets"]):
            continue
        seen.add(node)
        for dependency in nodes[node]["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal or packages[dependency["pkg"]]["name"] in BUILT:
                queue.append(dependency["pkg"])
    return sorted((packages[node] for node in seen - {root}), key=lambda p: (p["name"], p["version"]))


def texts(package):
    """The files in which a package keeps its licences."""
    folder = pathlib.Path(package["manifest_path"]).parent
    own = [path for path in folder.iterdir() if path.is_file() and path.name.upper().startswith(TEXTS)]
    inner = [folder / name for name in WITHIN.get(package["name"], []) if (folder / name).is_file()]
    if package["name"] in ("openssl-src", "rdkafka-sys", "zstd-sys") and not inner:
        sys.exit(f"licences.py: the licence of the C library in {package['name']} is not where it was")
    return [path.read_text(errors="replace").strip() for path in sorted(own) + inner]


def main(triple):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", triple]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    by_text, without = {}, []
    for package in linked(metadata):
        name = f"{package['name']} {package['version']} ({package['license']})"
        found = texts(package)
        if not found:
            without.append(name)
        for text in found:
            by_text.setdefault(text, []).append(name)
    print("What is in the binary of Tidegate, and under which licence it came.\n")
    print(ALSO)
    if without:
        print("Without a text of their own:\n  " + "\n  ".join(without))
    for text, names in by_text.items():
        print("\n" + "=" * 100 + "\n" + "\n".join(sorted(set(names))) + "\n\n" + text)


main(*sys.argv[1:])
